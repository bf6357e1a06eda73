// Least sums of two tables whose indices add up.

#include <algorithm>
#include <cstdint>

// out[lane, y] = least of left[lane, y - x] + right[lane, x] over x < right_width and x <= y.
extern "C" __attribute__((visibility("default"))) void berth_min_plus(
    const double* left, const double* right, int64_t lanes, int64_t left_width, int64_t right_width, double* out) {
  for (int64_t lane = 0; lane < lanes; ++lane, left += left_width, right += right_width, out += left_width) {
    std::transform(left, left + left_width, out, [&](double value) { return value + right[0]; });
    for (int64_t x = 1; x < std::min(left_width, right_width); ++x)
      for (int64_t y = x; y < left_width; ++y) out[y] = std::min(out[y], left[y - x] + right[x]);
  }
}
