// The master's dual, smoothed (balancing.py): least costs of pools' patterns at prices of shared nodes, taken softly.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "api.hpp"
#include "arithmetic.hpp"

namespace {

constexpr double kNothing = -45.0;  // exp of less is beyond what a sum of doubles shows

}  // namespace

// Patterns lie one pool after the other, those of pool i from first[i] to first[i + 1]; pattern c takes units[e] of
// row[e] for e from begin[c] to begin[c + 1].  Into `weight` [pattern] its part in its pool, into `value` the sum of the
// pools' soft least costs at `prices` [row] and `temperature` [pool].
BERTH_API void berth_soft_least(
    const int64_t* first, const int64_t* begin, const int64_t* row, const double* units, const double* cost,
    const double* prices, const double* temperature, int64_t pools, double* weight, double* value) {
  double sum = 0.0;
  for (int64_t i = 0; i < pools; ++i) {
    double least = std::numeric_limits<double>::infinity();
    for (int64_t c = first[i]; c < first[i + 1]; ++c) {
      double total = cost[c];
      for (int64_t e = begin[c]; e < begin[c + 1]; ++e) total += units[e] * prices[row[e]];
      weight[c] = total;
      least = std::min(least, total);
    }
    double all = 0.0;
    for (int64_t c = first[i]; c < first[i + 1]; ++c) {
      const double below = (least - weight[c]) / temperature[i];
      weight[c] = below > kNothing ? berth::exp(below) : 0.0;
      all += weight[c];
    }
    for (int64_t c = first[i]; c < first[i + 1]; ++c) weight[c] /= all;
    sum += least - temperature[i] * berth::log(all);
  }
  *value = sum;
}

// Into `slope` [row] the units that patterns take by their weights, into `bend` [row, row] how fast these fall as prices
// rise, counting patterns that are more than `torn` of their pool, and less than all but that.  Both begin as zeros.
BERTH_API void berth_soft_derivatives(
    const int64_t* first, const int64_t* begin, const int64_t* row, const double* units, const double* weight,
    const double* temperature, int64_t pools, int64_t rows, double torn, double* slope, double* bend) {
  std::vector<double> mean(rows);
  for (int64_t i = 0; i < pools; ++i) {
    bool any = false;
    for (int64_t c = first[i]; c < first[i + 1]; ++c) {
      if (weight[c] <= 0) continue;
      for (int64_t e = begin[c]; e < begin[c + 1]; ++e) slope[row[e]] += weight[c] * units[e];
      if (weight[c] <= torn || weight[c] >= 1 - torn) continue;
      any = true;
      const double share = weight[c] / temperature[i];
      for (int64_t e = begin[c]; e < begin[c + 1]; ++e) {
        mean[row[e]] += weight[c] * units[e];
        for (int64_t f = begin[c]; f < begin[c + 1]; ++f) bend[row[e] * rows + row[f]] += share * units[e] * units[f];
      }
    }
    if (!any) continue;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; mean[r] != 0 && s < rows; ++s) bend[r * rows + s] -= mean[r] * mean[s] / temperature[i];
    std::fill(mean.begin(), mean.end(), 0.0);
  }
}
