// The master's dual, smoothed (balancing.py): pools' least costs at prices of shared nodes, taken softly, and the prices
// at which it is greatest.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "api.hpp"
#include "arithmetic.hpp"

namespace berth {

// balancing.py fills it in.  Patterns lie one pool after the other, those of pool i from first[i] to first[i + 1];
// pattern c takes units[e] of row[e] for e from begin[c] to begin[c + 1].
struct Balance {
  int64_t pools, rows, patterns;
  const int64_t *first, *begin, *row;
  const double *units, *cost;         // [entry], [pattern]
  const double *caps, *most, *worth;  // [row], [row], [pool]
};

namespace {

constexpr double kNothing = -45.0;  // exp of less is beyond what a sum of doubles shows
constexpr double kTorn = 1e-6;      // weight from which a pattern counts in the Hessian
constexpr double kTemperatures[] = {0.05, 0.01};  // of what each pool costs: far apart patterns first, then near ones
constexpr int kSteps = 40, kTries = 8;
constexpr double kNoGain = 2e-5;         // of the cost of all, that a step has to gain
constexpr double kLongest = 0.5;         // of a price, that a step may change it by,
constexpr double kLongestOfMost = 0.05;  // or of the most that it may be, where that is more

using Numbers = std::vector<double>;

class Balancing {
 public:
  Balancing(const Balance& balance, double* prices)
      : b_(balance), prices_(prices), temperature_(b_.pools), weight_(b_.patterns), weighed_(b_.patterns),
        slope_(b_.rows), mean_(b_.rows), step_(b_.rows), tried_(b_.rows), bend_(b_.rows * b_.rows) {}

  void run() {
    double worth = 0.0;
    for (int64_t i = 0; i < b_.pools; ++i) worth += b_.worth[i];
    for (const double part : kTemperatures) {
      for (int64_t i = 0; i < b_.pools; ++i) temperature_[i] = part * b_.worth[i];
      climb(kNoGain * worth);
    }
  }

 private:
  // Newton's steps, damped, while each gains more than `least`.
  void climb(double least) {
    double value = at(prices_, weight_), damping = 1.0, gain = kNever;
    for (int step = 0; step < kSteps && gain > least; ++step) {
      derive();
      gain = 0.0;
      for (int attempt = 0; attempt < kTries && !free_.empty(); ++attempt) {
        move(damping);
        const double better = at(tried_.data(), weighed_);
        if (better > value) {
          gain = better - value, value = better;
          std::swap(weight_, weighed_);
          std::copy(tried_.begin(), tried_.end(), prices_);
          damping = std::max(damping / 8, 1e-6);
          break;
        }
        damping = std::max(damping * 8, 1e-3);
      }
    }
  }

  // The dual's value, and what part each pattern has of its pool.
  double at(const double* prices, Numbers& weight) const {
    double sum = 0.0;
    for (int64_t i = 0; i < b_.pools; ++i) {
      double least = kNever;
      for (int64_t c = b_.first[i]; c < b_.first[i + 1]; ++c) {
        double total = b_.cost[c];
        for (int64_t e = b_.begin[c]; e < b_.begin[c + 1]; ++e) total += b_.units[e] * prices[b_.row[e]];
        weight[c] = total;
        least = std::min(least, total);
      }
      double all = 0.0;
      for (int64_t c = b_.first[i]; c < b_.first[i + 1]; ++c) {
        const double below = (least - weight[c]) / temperature_[i];
        weight[c] = below > kNothing ? exp(below) : 0.0;
        all += weight[c];
      }
      for (int64_t c = b_.first[i]; c < b_.first[i + 1]; ++c) weight[c] /= all;
      sum += least - temperature_[i] * log(all);
    }
    for (int64_t r = 0; r < b_.rows; ++r) sum -= prices[r] * b_.caps[r];
    return sum;
  }

  // Into `slope_` the units that patterns take beyond the rows, into `bend_` how fast these fall as prices rise, of
  // patterns that are neither nothing of their pool nor all; into `free_` the rows whose price may move that way.
  void derive() {
    std::fill(slope_.begin(), slope_.end(), 0.0);
    std::fill(bend_.begin(), bend_.end(), 0.0);
    for (int64_t i = 0; i < b_.pools; ++i) {
      bool any = false;
      for (int64_t c = b_.first[i]; c < b_.first[i + 1]; ++c) {
        if (weight_[c] <= 0) continue;
        const int64_t begin = b_.begin[c], end = b_.begin[c + 1];
        for (int64_t e = begin; e < end; ++e) slope_[b_.row[e]] += weight_[c] * b_.units[e];
        if (weight_[c] <= kTorn || weight_[c] >= 1 - kTorn) continue;
        any = true;
        const double share = weight_[c] / temperature_[i];
        for (int64_t e = begin; e < end; ++e) {
          mean_[b_.row[e]] += weight_[c] * b_.units[e];
          for (int64_t f = begin; f < end; ++f)
            bend_[b_.row[e] * b_.rows + b_.row[f]] += share * b_.units[e] * b_.units[f];
        }
      }
      if (!any) continue;
      for (int64_t r = 0; r < b_.rows; ++r)
        for (int64_t s = 0; mean_[r] != 0 && s < b_.rows; ++s)
          bend_[r * b_.rows + s] -= mean_[r] * mean_[s] / temperature_[i];
      std::fill(mean_.begin(), mean_.end(), 0.0);
    }
    free_.clear();
    for (int64_t r = 0; r < b_.rows; ++r) {
      slope_[r] -= b_.caps[r];
      const bool stuck = (prices_[r] <= 0 && slope_[r] <= 0) || (prices_[r] >= b_.most[r] && slope_[r] >= 0);
      if (!stuck) free_.push_back(r);
    }
  }

  // Into `tried_` the prices after a step (Levenberg's damping) of those that are free.
  void move(double damping) {
    solve(damping);
    std::copy_n(prices_, b_.rows, tried_.begin());
    for (size_t i = 0; i < free_.size(); ++i) {
      const int64_t r = free_[i];
      const double longest = std::max(kLongest * prices_[r], kLongestOfMost * b_.most[r]);
      tried_[r] = clip(prices_[r] + clip(step_[i], -longest, longest), 0.0, b_.most[r]);
    }
  }

  // Into `step_` [free row] what (bend + damping) takes to the slope, by Cholesky's factors.
  void solve(double damping) {
    const int64_t count = static_cast<int64_t>(free_.size());
    double most = 0.0;
    for (int64_t r = 0; r < b_.rows; ++r) most = std::max(most, bend_[r * b_.rows + r]);
    const double least = 1e-9 * most + 1e-9;
    factor_.resize(count * count);
    for (int64_t i = 0; i < count; ++i) {
      double* mine = &factor_[i * count];
      const double own = bend_[free_[i] * b_.rows + free_[i]];
      for (int64_t j = 0; j <= i; ++j) {
        const double* other = &factor_[j * count];
        double rest = bend_[free_[i] * b_.rows + free_[j]];
        if (i == j) rest += damping * std::max(own, least);
        for (int64_t k = 0; k < j; ++k) rest -= mine[k] * other[k];
        mine[j] = i == j ? std::sqrt(std::max(rest, kTiny * least)) : rest / other[j];
      }
      double rest = slope_[free_[i]];
      for (int64_t k = 0; k < i; ++k) rest -= mine[k] * step_[k];
      step_[i] = rest / mine[i];
    }
    for (int64_t i = count; i-- > 0;) {
      for (int64_t k = i + 1; k < count; ++k) step_[i] -= factor_[k * count + i] * step_[k];
      step_[i] /= factor_[i * count + i];
    }
  }

  static constexpr double kNever = std::numeric_limits<double>::infinity();

  const Balance& b_;
  double* prices_;
  Numbers temperature_, weight_, weighed_;  // [pool], [pattern] at `prices_`, [pattern] at `tried_`
  Numbers slope_, mean_, step_, tried_, bend_, factor_;
  std::vector<int64_t> free_;
};

}  // namespace
}  // namespace berth

// `prices` [row], between 0 and the most, become those of the smoothed dual's greatest value.
BERTH_API void berth_balance(const berth::Balance* balance, double* prices) {
  berth::Balancing(*balance, prices).run();
}
