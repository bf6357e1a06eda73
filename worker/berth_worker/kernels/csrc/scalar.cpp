// The reference: plain C++ that any compiler takes, on any machine.
#include "isa.h"

namespace berth {
namespace {

constexpr int kRows = 4;

void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t*, int32_t* out) {
  for (int r = 0; r < rows; ++r) {
    int32_t sums[kPanel] = {};
    const int8_t* a = values + r * stride;
    for (int64_t k = 0; k < depth; k += 4)
      for (int c = 0; c < kPanel; ++c) {
        const int8_t* w = panel + k * kPanel + c * 4;
        sums[c] += a[k] * w[0] + a[k + 1] * w[1] + a[k + 2] * w[2] + a[k + 3] * w[3];
      }
    for (int c = 0; c < kPanel; ++c) out[r * kPanel + c] = sums[c];
  }
}

void dot(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out) {
  dot_positive(panel, depth, rows_of.values, rows_of.stride, rows, ahead, out);
}

}  // namespace
}  // namespace berth

#include "body.h"

namespace berth {
const Isa scalar_isa = BERTH_ISA_TABLE("scalar");
}
