// SVE of any vector length, by its dot product alone: for cores without the matrix extension (A64FX), or with long vectors.
#include "sve_dot.h"

namespace berth {
namespace {

constexpr int kRows = kSveRows;

void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out) {
  sve_dot_asking(panel, depth, values, stride, rows, ahead, out);
}

void dot(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out) {
  sve_dot_asking(panel, depth, rows_of.values, rows_of.stride, rows, ahead, out);
}

inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  sve_tile(m, panel, a, row, rows, sums);
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_TILE
#include "body.h"

namespace berth {
const Isa sve_isa = BERTH_ISA_TABLE("sve");
}
