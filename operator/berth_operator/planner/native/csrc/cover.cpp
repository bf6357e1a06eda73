#include "cover.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "clones.hpp"

namespace berth {
namespace {

constexpr double kRounding = 1e-7;  // units by which nodes may be above a whole number
constexpr double kHair = 5e-5;      // of what the fluid fills up, poured on top: units are a hair less than whole shares
constexpr double kNothing = 1e-12;
constexpr int64_t kFluid = -1;

// after[w] = min(after[w], before[max(w - gain, 0)] + cost)
BERTH_CLONES void relax(const double* before, int64_t gain, double cost, int64_t width, double* after) {
  const double all = before[0] + cost;
  for (int64_t w = 0; w < gain; ++w) after[w] = all < after[w] ? all : after[w];
  for (int64_t w = gain; w < width; ++w) {
    const double found = before[w - gain] + cost;
    after[w] = found < after[w] ? found : after[w];
  }
}

double density(const Nodes& of) { return of.cost / std::max(of.carried, kNothing); }
double room(const Nodes& of) { return std::min(static_cast<double>(of.times) * of.carried, of.cap); }

}  // namespace

double* Cover::begin(int64_t levels, int64_t width) {
  levels_ = levels, width_ = width, size_ = static_cast<size_t>(levels * width);
  tables_.resize(size_), choices_.clear(), steps_.clear(), fluid_.clear();
  return tables_.data();
}

void Cover::add_fluid(const std::vector<Nodes>& small) {
  fluid_ = small;
  std::stable_sort(fluid_.begin(), fluid_.end(), [](auto& a, auto& b) { return density(a) < density(b); });
  double all = 0.0, least = std::numeric_limits<double>::infinity();
  for (const auto& of : fluid_) all += room(of), least = std::min(least, of.cost);
  const size_t begin = choices_.size();
  // More than y - 1 units are carried where y are counted, and by one node at the least.
  for (int64_t y = 1; y < width_ && static_cast<double>(y - 1) < all; ++y) {
    double lacking = static_cast<double>(y - 1), cost = 0.0;
    for (const auto& of : fluid_) {
      const double taken = std::min(lacking, room(of));
      cost += taken * density(of), lacking -= taken;
    }
    choices_.push_back({0, y, 0, std::max(cost, least)});
  }
  take({kFluid, 0, 0, 0.0, 0.0, 0.0}, begin);
}

void Cover::add(const Nodes& of, const std::vector<double>& units) {
  const size_t begin = choices_.size();
  int64_t most = 0;
  for (int64_t j = 1; j <= of.times; ++j) {
    const double carried = std::max(std::ceil(units[j - 1] - kRounding), 0.0);
    const int64_t gain = static_cast<int64_t>(std::min(carried, static_cast<double>(width_ - 1)));
    const bool wanted = (j - 1) * of.replicas < levels_ - 1;
    if (gain > most || wanted) choices_.push_back({j, gain, j * of.replicas, static_cast<double>(j) * of.cost});
    most = std::max(most, gain);
    if (most == width_ - 1 && !wanted) break;
  }
  take(of, begin);
}

void Cover::take(const Nodes& of, size_t begin) {
  if (begin == choices_.size()) return;
  steps_.push_back({of, begin, choices_.size()});
  tables_.resize(tables_.size() + size_);
  double* after = tables_.data() + tables_.size() - size_;
  const double* before = after - size_;
  std::copy_n(before, size_, after);
  for (size_t i = begin; i < choices_.size(); ++i)
    for (int64_t level = 0; level < levels_; ++level)
      relax(before + std::max<int64_t>(level - choices_[i].replicas, 0) * width_, choices_[i].gain, choices_[i].cost,
            width_, after + level * width_);
}

void Cover::trace(int64_t level, int64_t unit, double exactly, int64_t* into) const {
  const double* after = costs();
  double carried = 0.0;
  for (size_t s = steps_.size(); s-- > 0; after -= size_) {
    const Step& step = steps_[s];
    const double* before = after - size_;
    if (!(after[level * width_ + unit] < before[level * width_ + unit])) continue;
    if (step.of.option == kFluid) return pour(exactly * (1 + kHair) - carried, into);
    const Choice* best = nullptr;
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = step.begin; i < step.end; ++i) {
      const Choice& one = choices_[i];
      const int64_t wanted = std::max<int64_t>(level - one.replicas, 0), rest = std::max<int64_t>(unit - one.gain, 0);
      const double cost = before[wanted * width_ + rest] + one.cost;
      if (cost < least) least = cost, best = &one;
    }
    into[step.of.option] += best->nodes;
    carried += std::min(static_cast<double>(best->nodes) * step.of.carried, step.of.cap);
    level = std::max<int64_t>(level - best->replicas, 0), unit = std::max<int64_t>(unit - best->gain, 0);
  }
}

// Small nodes, the densest first, for what the others lack.
void Cover::pour(double lacking, int64_t* into) const {
  for (const auto& of : fluid_) {
    const double count = std::ceil(std::min(lacking, of.cap) / std::max(of.carried, kNothing) - kRounding);
    into[of.option] += static_cast<int64_t>(std::clamp(count, 0.0, static_cast<double>(of.times)));
    lacking -= room(of);
  }
}

BERTH_CLONES void min_plus(const double* left, const double* right, int64_t width, int64_t right_width, double* out) {
  for (int64_t y = 0; y < width; ++y) out[y] = left[y] + right[0];
  for (int64_t x = 1; x < std::min(width, right_width); ++x)
    for (int64_t y = x; y < width; ++y) {
      const double found = left[y - x] + right[x];
      out[y] = found < out[y] ? found : out[y];
    }
}

}  // namespace berth
