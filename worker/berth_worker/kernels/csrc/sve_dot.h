// How does SVE's sdot multiply a few rows by a panel, for vectors of any length?  A line of weights (16 channels x 4 of depth, 64 bytes)
// is four vectors of 128 bits, two of 256, or part of one; predicates cut off what is past its end.  ld1rq repeats 16 bytes of activations
// in each 128 bits of a vector, and sdot takes the same lane of each.
//
// Vector types have no size, so there are no arrays of them: macros name the sums, and the compiler drops those that a shape does not
// use.  Wants -march=...+sve.
#pragma once
#include <arm_sve.h>

#include "neon.h"

namespace berth {
namespace {

constexpr int kSveRows = 4;

// Vectors that cover a line.
inline int vectors_of_line() {
  const uint64_t bytes = svcntb();
  return bytes >= 64 ? 1 : bytes >= 32 ? 2 : 4;
}

// 15 in each byte, of which the compiler does not know: `and` with an immediate overwrites its operand, and would cost a copy.
BERTH_INLINE svint8_t mask_of_nibbles() {
  svint8_t fifteen = svdup_n_s8(15);
  asm("" : "+w"(fifteen));
  return fifteen;
}

// Sum s<i><v> belongs to vector v of a line and row i / kChains.  Fewer than four rows have several chains of sums each, which take turns
// in the lanes: sdot takes 3 cycles on Neoverse V1, and two start in each.
#define BERTH_SUMS_OF(v, DO) DO(0, v) DO(1, v) DO(2, v) DO(3, v)
#define BERTH_EACH_SUM(DO) BERTH_SUMS_OF(0, DO) BERTH_SUMS_OF(1, DO) BERTH_SUMS_OF(2, DO) BERTH_SUMS_OF(3, DO)
#define BERTH_USED(i, v) ((v) < Vectors && (i) < Rows * kChains)
#define BERTH_BEGIN(i, v) svint32_t s##i##v = svdup_n_s32(i % kChains == 0 ? begin : 0);
#define BERTH_ADD(i, v) \
  if constexpr (BERTH_USED(i, v) && lane % kChains == i % kChains) s##i##v = svdot_lane_s32(s##i##v, w##v, x##i, lane);
#define BERTH_ADD_LANE(LANE)     \
  {                              \
    constexpr int lane = LANE;   \
    BERTH_EACH_SUM(BERTH_ADD)    \
  }
#define BERTH_ADD_WEIGHTS(LANE, W0, W1, W2, W3)  \
  {                                              \
    const svint8_t w0 = W0;                      \
    [[maybe_unused]] const svint8_t w1 = W1;     \
    [[maybe_unused]] const svint8_t w2 = W2;     \
    [[maybe_unused]] const svint8_t w3 = W3;     \
    BERTH_ADD_LANE(LANE)                         \
  }
#define BERTH_LOW(w) svand_s8_x(all0, w, fifteen)
#define BERTH_HIGH(w) svreinterpret_s8_u8(svlsr_n_u8_x(all0, svreinterpret_u8_s8(w), 4))
// A line of weights: 4 of depth, or 8 if they are nibbles.
#define BERTH_LINE(LANE, LINE)                                                                             \
  {                                                                                                        \
    const int8_t* line = LINE;                                                                             \
    const svint8_t l0 = svld1_s8(all0, line);                                                              \
    const svint8_t l1 = Vectors > 1 ? svld1_s8(all1, line + bytes) : l0;                                   \
    const svint8_t l2 = Vectors > 2 ? svld1_s8(all2, line + 2 * bytes) : l0;                               \
    const svint8_t l3 = Vectors > 2 ? svld1_s8(all3, line + 3 * bytes) : l0;                               \
    if constexpr (bits == 8) {                                                                             \
      BERTH_ADD_WEIGHTS(LANE, l0, l1, l2, l3)                                                              \
    } else {                                                                                               \
      BERTH_ADD_WEIGHTS(LANE, BERTH_LOW(l0), BERTH_LOW(l1), BERTH_LOW(l2), BERTH_LOW(l3))                  \
      BERTH_ADD_WEIGHTS((LANE + 1) % 4, BERTH_HIGH(l0), BERTH_HIGH(l1), BERTH_HIGH(l2), BERTH_HIGH(l3))    \
    }                                                                                                      \
  }
#define BERTH_STORE(r, v)                                                                                             \
  if constexpr ((v) < Vectors && r < Rows) {                                                                          \
    const svbool_t some = svwhilelt_b32(static_cast<uint64_t>(v) * svcntw(), static_cast<uint64_t>(kPanel));          \
    if constexpr (kChains == 1) svst1_s32(some, out + r * kPanel + v * svcntw(), s##r##v);                            \
    if constexpr (kChains == 2 && r == 0) svst1_s32(some, out + v * svcntw(), svadd_s32_x(some, s0##v, s1##v));       \
    if constexpr (kChains == 2 && r == 1)                                                                             \
      svst1_s32(some, out + kPanel + v * svcntw(), svadd_s32_x(some, s2##v, s3##v));                                  \
    if constexpr (kChains == 4)                                                                                       \
      svst1_s32(some, out + v * svcntw(), svadd_s32_x(some, svadd_s32_x(some, s0##v, s1##v), svadd_s32_x(some, s2##v, s3##v))); \
  }

// out[r][c] = begin + the products of `depth` values of each row with a panel.
template <int Vectors, int Rows, int bits, Ask ask>
BERTH_LOOP void sve_dot_rows(const int8_t* w, int64_t depth, const int8_t* values, int64_t stride, const int8_t* ahead, int32_t begin,
                             int32_t* out) {
  constexpr int kChains = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  constexpr uint64_t kLine = 64;
  const auto bytes = static_cast<int64_t>(svcntb());
  const svbool_t all0 = svwhilelt_b8(uint64_t{0}, kLine), all1 = svwhilelt_b8(svcntb(), kLine);
  const svbool_t all2 = svwhilelt_b8(2 * svcntb(), kLine), all3 = svwhilelt_b8(3 * svcntb(), kLine), every = svptrue_b8();
  [[maybe_unused]] const svint8_t fifteen = mask_of_nibbles();
  BERTH_EACH_SUM(BERTH_BEGIN)
  const int8_t *row0 = values, *row1 = values + 1 / kChains * stride, *row2 = values + 2 / kChains * stride;
  const int8_t* row3 = values + 3 / kChains * stride;
  int64_t k = 0;
  for (; k + 16 <= depth; k += 16) {
    const svint8_t x0 = svld1rq_s8(every, row0 + k);
    [[maybe_unused]] const svint8_t x1 = kChains > 1 ? x0 : svld1rq_s8(every, row1 + k);
    [[maybe_unused]] const svint8_t x2 = kChains > 2 ? x0 : svld1rq_s8(every, row2 + k);
    [[maybe_unused]] const svint8_t x3 = kChains == 4 ? x0 : kChains == 2 ? x2 : Rows > 3 ? svld1rq_s8(every, row3 + k) : x0;
    const int64_t offset = k * kPanel * bits / 8;
    const int8_t* lines = w + offset;
    for (int i = 0; i < bits / 2; ++i) ask_for<ask>(w, ahead, offset, i);
    BERTH_LINE(0, lines)
    if constexpr (bits == 8) {
      BERTH_LINE(1, lines + 64)
      BERTH_LINE(2, lines + 128)
      BERTH_LINE(3, lines + 192)
    } else {
      BERTH_LINE(2, lines + 64)
    }
  }
  for (; k < depth; k += bits == 8 ? 4 : 8) {  // 4 or 8 of depth, in all lanes or in turn
    int64_t eight[4] = {0, 0, 0, 0};
    for (int r = 0; r < Rows; ++r) __builtin_memcpy(eight + r, values + r * stride + k, bits == 8 ? 4 : 8);
    const svint8_t x0 = svreinterpret_s8_s64(svdup_n_s64(eight[0]));
    [[maybe_unused]] const svint8_t x1 = svreinterpret_s8_s64(svdup_n_s64(eight[1 / kChains]));
    [[maybe_unused]] const svint8_t x2 = svreinterpret_s8_s64(svdup_n_s64(eight[2 / kChains]));
    [[maybe_unused]] const svint8_t x3 = svreinterpret_s8_s64(svdup_n_s64(eight[3 / kChains]));
    BERTH_LINE(0, w + k * kPanel * bits / 8)
  }
  BERTH_EACH_SUM(BERTH_STORE)
}

template <int Vectors, int bits, Ask ask>
inline void sve_dot_up_to_four(const int8_t* w, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                               int32_t begin, int32_t* out) {
  switch (rows) {
    case 1: return sve_dot_rows<Vectors, 1, bits, ask>(w, depth, values, stride, ahead, begin, out);
    case 2: return sve_dot_rows<Vectors, 2, bits, ask>(w, depth, values, stride, ahead, begin, out);
    case 3: return sve_dot_rows<Vectors, 3, bits, ask>(w, depth, values, stride, ahead, begin, out);
    default: return sve_dot_rows<Vectors, 4, bits, ask>(w, depth, values, stride, ahead, begin, out);
  }
}

template <int bits, Ask ask>
inline void sve_dot(const int8_t* w, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t begin,
                    int32_t* out) {
  switch (vectors_of_line()) {
    case 1: return sve_dot_up_to_four<1, bits, ask>(w, depth, values, stride, rows, ahead, begin, out);
    case 2: return sve_dot_up_to_four<2, bits, ask>(w, depth, values, stride, rows, ahead, begin, out);
    default: return sve_dot_up_to_four<4, bits, ask>(w, depth, values, stride, rows, ahead, begin, out);
  }
}

// Up to kSveRows rows of attention.
inline void sve_dot_asking(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                           int32_t* out) {
  if (ahead != nullptr)
    sve_dot<8, Ask::each_line>(panel, depth, values, stride, rows, ahead, 0, out);
  else
    sve_dot<8, Ask::nothing>(panel, depth, values, stride, rows, nullptr, 0, out);
}

template <int bits, Ask ask>
inline void sve_tile_bits(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  const bool fits = sums_fit_floats(a);
  const int64_t units = a.units();
  clear_sums(rows, sums);
  PanelScales scales{};
  for (int64_t u = 0, group = -1; u < units; ++u) {
    const int64_t start = u * a.unit;
    alignas(64) int32_t dots[kSveRows][kPanel];
    sve_dot<bits, ask>(m.weights + panel * m.panel_bytes() + start * kPanel * bits / 8, unit_depth(a, u), a.values + row * a.depth + start,
                       a.depth, rows, nullptr, fits ? kSumBits : 0, dots[0]);
    if (start / m.group != group) group = start / m.group, scales = scales_of(m, panel, group);
    for (int r = 0; r < rows; ++r) {
      const int32x4_t of_row[4] = {vld1q_s32(dots[r]), vld1q_s32(dots[r] + 4), vld1q_s32(dots[r] + 8), vld1q_s32(dots[r] + 12)};
      settle(m, a, scales, row + r, u, fits, of_row, sums[r]);
    }
  }
  scale_rows(a, row, rows, sums);
}

// Up to kSveRows rows by one panel.
inline void sve_tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  if (m.bits == 8)
    row == 0 ? sve_tile_bits<8, Ask::next_page>(m, panel, a, row, rows, sums)
             : sve_tile_bits<8, Ask::nothing>(m, panel, a, row, rows, sums);
  else
    row == 0 ? sve_tile_bits<4, Ask::next_page>(m, panel, a, row, rows, sums)
             : sve_tile_bits<4, Ask::nothing>(m, panel, a, row, rows, sums);
}

}  // namespace
}  // namespace berth
