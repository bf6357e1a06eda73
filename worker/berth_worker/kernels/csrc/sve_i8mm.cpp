// SVE of any vector length with the matrix extension: smmla on whole vectors from four rows on, sdot below (Graviton3: 256 bits).
#include "mmla.h"
#include "neon_mmla.h"
#include "sve_dot.h"

namespace berth {
namespace {

constexpr int kRows = kPairedRows;

#define BERTH_EACH_PAIR(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define BERTH_BEGIN_PAIR(p)                                   \
  svint32_t even##p = svdup_n_s32(b.fits ? kSumBits : 0);     \
  svint32_t odd##p = even##p;                                 \
  if constexpr (p < Pairs)                                    \
    if (!b.first) {                                           \
      even##p = svld1_s32(words, partial + p * kPairFloats);  \
      odd##p = svld1_s32(words, partial + p * kPairFloats + kPanel); \
    }
#define BERTH_ADD_PAIR(p)                                   \
  if constexpr (p < Pairs) {                                \
    const svint8_t rows = svld1rq_s8(every, x + 16 * p);    \
    even##p = svmmla_s32(even##p, rows, even);              \
    odd##p = svmmla_s32(odd##p, rows, odd);                 \
  }
#define BERTH_END_PAIR(p)                                            \
  if constexpr (p < Pairs) {                                         \
    finish<bits>(b, words, at, p, even##p);                          \
    finish<bits>(b, words, at + kPanel, p, odd##p);                  \
  }

// What multiply_pairs of neon_mmla.h does at the end with one vector of sums.
template <int bits>
BERTH_INLINE void finish(const Block& b, svbool_t words, int64_t at, int pair, svint32_t dots) {
  if (!b.last) return svst1_s32(words, b.partial + pair * kPairFloats + at, dots);
  float* sums = b.sums + pair * kPairFloats + at;
  svfloat32_t scale = svld1_f32(words, b.weight_scales + at);
  if (b.row_scales != nullptr) scale = svmul_f32_x(words, svld1rq_f32(svptrue_b32(), b.row_scales + 4 * pair), scale);
  const svfloat32_t product = b.fits ? svsub_n_f32_x(words, svreinterpret_f32_s32(dots), kSumFloat) : svcvt_f32_s32_x(words, dots);
  svfloat32_t sum = svmla_f32_x(words, svld1_f32(words, sums), product, scale);
  if constexpr (bits == 4)
    sum = svmla_f32_x(words, sum, svld1rq_f32(svptrue_b32(), b.row_sums + 4 * pair), svld1_f32(words, b.minima + at));
  svst1_f32(words, sums, sum);
}

// Pairs of rows by one vector of a line, as many granules as it holds; then by the next.
template <int Pairs, int bits, bool ask>
BERTH_LOOP void sve_multiply_pairs(const Block& b) {
  const svbool_t every = svptrue_b8();
  [[maybe_unused]] const svint8_t fifteen = mask_of_nibbles();
  for (int64_t start = 0; start < 64; start += static_cast<int64_t>(svcntb())) {
    const svbool_t line = svwhilelt_b8(start, int64_t{64}), words = svwhilelt_b32(start / 4, int64_t{kPanel});
    const int64_t at = start / 4;
    [[maybe_unused]] const int32_t* partial = b.partial + at;
    BERTH_EACH_PAIR(BERTH_BEGIN_PAIR)
    const int8_t *w = b.weights + start, *x = b.values;
    int64_t k = 0;
    for (; k + 8 <= b.depth; k += 8, w += 16 * bits, x += 16 * Pairs) {
      if constexpr (ask)
        if (start == 0) __builtin_prefetch(w + kNextPage);
      svint8_t upper = svld1_s8(line, w), lower;
      if constexpr (bits == 8) {
        lower = svld1_s8(line, w + 64);
      } else {
        lower = svreinterpret_s8_u8(svlsr_n_u8_x(line, svreinterpret_u8_s8(upper), 4));
        upper = svand_s8_x(line, upper, fifteen);
      }
      const svint8_t even = svreinterpret_s8_s32(svtrn1_s32(svreinterpret_s32_s8(upper), svreinterpret_s32_s8(lower)));
      const svint8_t odd = svreinterpret_s8_s32(svtrn2_s32(svreinterpret_s32_s8(upper), svreinterpret_s32_s8(lower)));
      BERTH_EACH_PAIR(BERTH_ADD_PAIR)
    }
    if (bits == 8 && k < b.depth) {  // 4 more of depth
      const svint32_t upper = svreinterpret_s32_s8(svld1_s8(line, w)), none = svdup_n_s32(0);
      const svint8_t even = svreinterpret_s8_s32(svtrn1_s32(upper, none)), odd = svreinterpret_s8_s32(svtrn2_s32(upper, none));
      BERTH_EACH_PAIR(BERTH_ADD_PAIR)
    }
    BERTH_EACH_PAIR(BERTH_END_PAIR)
  }
}

inline void multiply(int bits, int pairs, const Block& b) {
#define BERTH_CASE(P)                                                                                        \
  case P:                                                                                                    \
    if (bits == 8) return b.ask ? sve_multiply_pairs<P, 8, true>(b) : sve_multiply_pairs<P, 8, false>(b);    \
    return b.ask ? sve_multiply_pairs<P, 4, true>(b) : sve_multiply_pairs<P, 4, false>(b);
  switch (pairs) { BERTH_CASE(2) BERTH_CASE(3) BERTH_CASE(4) BERTH_CASE(5) BERTH_CASE(6) BERTH_CASE(7) BERTH_CASE(8) }
#undef BERTH_CASE
}

inline void few_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  sve_tile(m, panel, a, row, rows, sums);
}

// By the 128-bit loops from four rows on: their four smmla a cycle and two of 256 bits are the same.
void dot(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out) {
  const int8_t* values = rows_of.values;
  if (rows >= kFewRows && depth % 16 == 0) return dot_up_to_eight(panel, depth, values, rows_of.stride, rows, ahead, out);
  for (int r = 0; r < rows; r += kSveRows)
    sve_dot_asking(panel, depth, values + r * rows_of.stride, rows_of.stride, rows - r < kSveRows ? rows - r : kSveRows,
                   r == 0 ? ahead : nullptr, out + r * kPanel);
}

void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out) {
  for (int r = 0; r < rows; r += kSveRows)
    sve_dot_asking(panel, depth, values + r * stride, stride, rows - r < kSveRows ? rows - r : kSveRows, r == 0 ? ahead : nullptr,
                   out + r * kPanel);
}

}  // namespace
}  // namespace berth

#include "body.h"

namespace berth {
const Isa sve_i8mm_isa = BERTH_ISA_TABLE("sve_i8mm");
}
