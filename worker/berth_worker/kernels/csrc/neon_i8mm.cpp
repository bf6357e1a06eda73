// NEON with the matrix extension: smmla, 32 multiply-adds an instruction, from four rows on; sdot below that (Armv8.6; Graviton3 and 4).
#include "neon_dot.h"
#include "neon_mmla.h"

namespace berth {
namespace {

constexpr int kRows = kPairedRows;

void dot(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out) {
  const int8_t* values = rows_of.values;
  const int64_t stride = rows_of.stride;
  if (rows < kFewRows || depth % 16 != 0) return sdot(panel, depth, values, stride, rows, ahead, out);
  dot_up_to_eight(panel, depth, values, stride, rows, ahead, out);
}

// Only attention's values come here, 16 of depth: too few for what smmla needs before and after.
void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out) {
  sdot(panel, depth, values, stride, rows, ahead, out);
}

inline void few_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  sdot_tile(m, panel, a, row, rows, sums);
}

inline void multiply(int bits, int pairs, const Block& b) {
  switch (pairs) {
    case 2: return multiply_bits<2, 4>(bits, b);
    case 3: return multiply_bits<3, 2>(bits, b);
    case 4: return multiply_bits<4, 2>(bits, b);
    case 5: return multiply_bits<5, 1>(bits, b);
    case 6: return multiply_bits<6, 1>(bits, b);
    case 7: return multiply_bits<7, 1>(bits, b);
    default: return multiply_bits<8, 1>(bits, b);
  }
}

}  // namespace
}  // namespace berth

#include "body.h"

namespace berth {
const Isa i8mm_isa = BERTH_ISA_TABLE("i8mm");
}
