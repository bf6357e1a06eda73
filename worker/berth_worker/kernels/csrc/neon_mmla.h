// The inner loops of smmla with 128-bit vectors.  Wants -march=...+dotprod+i8mm.
#pragma once
#include "mmla.h"

namespace berth {
namespace {

// Weights of 4 channels and 8 of depth, as two operands of smmla: channels 0 and 2, channels 1 and 3.
struct Operands {
  int8x16_t even, odd;
};
BERTH_INLINE Operands operands_of(int8x16_t upper, int8x16_t lower) {
  const int32x4_t u = vreinterpretq_s32_s8(upper), l = vreinterpretq_s32_s8(lower);
  return {vreinterpretq_s8_s32(vtrn1q_s32(u, l)), vreinterpretq_s8_s32(vtrn2q_s32(u, l))};
}
template <int bits>
BERTH_INLINE Operands operands_at(const int8_t* w) {
  if constexpr (bits == 8) return operands_of(bytes_at(w), bytes_at(w + 64));
  return operands_of(low_nibbles(bytes_at(w)), high_nibbles(bytes_at(w)));
}

// Pairs of rows by Columns granules (4 channels each), then the next granules: at least 12 sums for smmla's 3 cycles of 4, at most 16.
template <int Pairs, int bits, int Columns, bool ask>
BERTH_LOOP void multiply_pairs(const Block& b) {
  for (int g = 0; g < 4; g += Columns) {
    int32x4_t even[Pairs][Columns], odd[Pairs][Columns];
#pragma GCC unroll 8
    for (int p = 0; p < Pairs; ++p)
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c) {
        const int32_t* partial = b.partial + p * kPairFloats + (g + c) * 4;
        even[p][c] = b.first ? first_sum(b.fits) : vld1q_s32(partial);
        odd[p][c] = b.first ? first_sum(b.fits) : vld1q_s32(partial + kPanel);
      }
    const int8_t *w = b.weights + 16 * g, *x = b.values;
    const auto add = [&](const Operands(&o)[Columns]) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int p = 0; p < Pairs; ++p) {
        const int8x16_t rows = bytes_at(x + 16 * p);
#pragma GCC unroll 4
        for (int c = 0; c < Columns; ++c) {
          even[p][c] = vmmlaq_s32(even[p][c], rows, o[c].even);
          odd[p][c] = vmmlaq_s32(odd[p][c], rows, o[c].odd);
        }
      }
    };
    int64_t k = 0;
    for (; k + 8 <= b.depth; k += 8, w += 16 * bits, x += 16 * Pairs) {
      if constexpr (ask)
        if (g == 0) __builtin_prefetch(w + kNextPage);
      Operands o[Columns];
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c) o[c] = operands_at<bits>(w + 16 * c);
      add(o);
    }
    if (bits == 8 && k < b.depth) {  // 4 more of depth
      Operands o[Columns];
      for (int c = 0; c < Columns; ++c) o[c] = operands_of(bytes_at(w + 16 * c), vdupq_n_s8(0));
      add(o);
    }
#pragma GCC unroll 8
    for (int p = 0; p < Pairs; ++p)
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int32x4_t dots = half == 0 ? even[p][c] : odd[p][c];
          const int at = half * kPanel + (g + c) * 4;
          if (!b.last) {
            vst1q_s32(b.partial + p * kPairFloats + at, dots);
            continue;
          }
          float* sums = b.sums + p * kPairFloats + at;
          float32x4_t scale = vld1q_f32(b.weight_scales + at);
          if (b.row_scales != nullptr) scale = vmulq_f32(vld1q_f32(b.row_scales + 4 * p), scale);
          float32x4_t sum = vfmaq_f32(vld1q_f32(sums), float_of(dots, b.fits), scale);
          if (bits == 4) sum = vfmaq_f32(sum, vld1q_f32(b.row_sums + 4 * p), vld1q_f32(b.minima + at));
          vst1q_f32(sums, sum);
        }
  }
}

template <int Pairs, int Columns>
inline void multiply_bits(int bits, const Block& b) {
  if (bits == 8)
    b.ask ? multiply_pairs<Pairs, 8, Columns, true>(b) : multiply_pairs<Pairs, 8, Columns, false>(b);
  else
    b.ask ? multiply_pairs<Pairs, 4, Columns, true>(b) : multiply_pairs<Pairs, 4, Columns, false>(b);
}

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
        int32_t* to = out + 2 * p * kPanel + (g + c) * 4;
        vst1q_s32(to, vzip1q_s32(even[p][c], odd[p][c]));
        if (2 * p + 1 < rows) vst1q_s32(to + kPanel, vzip2q_s32(even[p][c], odd[p][c]));
      }
  }
}

constexpr int kPairedRows = 8;

// kFewRows to kPairedRows rows; depth a multiple of 16.
inline void dot_up_to_eight(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                            int32_t* out) {
  switch ((rows + 1) / 2) {
    case 2: return dot_pairs<2>(panel, depth, values, stride, rows, ahead, out);
    case 3: return dot_pairs<3>(panel, depth, values, stride, rows, ahead, out);
    default: return dot_pairs<4>(panel, depth, values, stride, rows, ahead, out);
  }
}

}  // namespace
}  // namespace berth
