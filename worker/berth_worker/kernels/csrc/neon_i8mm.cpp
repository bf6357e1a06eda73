// NEON with the matrix extension: smmla, 32 multiply-adds an instruction, from four rows on; sdot below that (Armv8.6; Graviton3 and 4).
#include "neon_mmla.h"

namespace berth {
namespace {

constexpr int kRows = 8;

// Attention's rows are not packed: pairs of them are formed as they are read.
template <int Pairs>
BERTH_LOOP void dot_pairs(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out) {
  const auto row = [&](int r) { return values + (r < rows ? r : rows - 1) * stride; };
  for (int g = 0; g < 4; g += 2) {
    int32x4_t even[Pairs][2], odd[Pairs][2];
    for (int p = 0; p < Pairs; ++p)
      for (int c = 0; c < 2; ++c) even[p][c] = odd[p][c] = vdupq_n_s32(0);
    for (int64_t k = 0; k < depth; k += 16) {
      const int8_t* w = panel + k * kPanel + 16 * g;
      if (ahead != nullptr)
        for (int line = g; line < g + 2; ++line) __builtin_prefetch(ahead + k * kPanel + line * 64);
      const Operands upper[2] = {operands_at<8>(w), operands_at<8>(w + 16)};
      const Operands lower[2] = {operands_at<8>(w + 128), operands_at<8>(w + 144)};
#pragma GCC unroll 4
      for (int p = 0; p < Pairs; ++p) {
        const int64x2_t x = vreinterpretq_s64_s8(bytes_at(row(2 * p) + k)), y = vreinterpretq_s64_s8(bytes_at(row(2 * p + 1) + k));
        const int8x16_t first = vreinterpretq_s8_s64(vzip1q_s64(x, y)), second = vreinterpretq_s8_s64(vzip2q_s64(x, y));
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          even[p][c] = vmmlaq_s32(vmmlaq_s32(even[p][c], first, upper[c].even), second, lower[c].even);
          odd[p][c] = vmmlaq_s32(vmmlaq_s32(odd[p][c], first, upper[c].odd), second, lower[c].odd);
        }
      }
    }
    for (int p = 0; p < Pairs; ++p)
      for (int c = 0; c < 2; ++c) {
        const int64x2_t e = vreinterpretq_s64_s32(even[p][c]), o = vreinterpretq_s64_s32(odd[p][c]);
        int32_t* to = out + 2 * p * kPanel + (g + c) * 4;
        vst1q_s32(to, vreinterpretq_s32_s64(vzip1q_s64(e, o)));
        if (2 * p + 1 < rows) vst1q_s32(to + kPanel, vreinterpretq_s32_s64(vzip2q_s64(e, o)));
      }
  }
}

void dot(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out) {
  const int8_t* values = rows_of.values;
  const int64_t stride = rows_of.stride;
  if (rows < kFewRows || depth % 16 != 0) return sdot(panel, depth, values, stride, rows, ahead, out);
  switch ((rows + 1) / 2) {
    case 2: return dot_pairs<2>(panel, depth, values, stride, rows, ahead, out);
    case 3: return dot_pairs<3>(panel, depth, values, stride, rows, ahead, out);
    default: return dot_pairs<4>(panel, depth, values, stride, rows, ahead, out);
  }
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
