// How does sdot multiply a few rows by a panel?  A granule of weights (4 channels x 4 of depth) times one lane of activations (4 of
// depth): four granules are a line of 16 channels, and 16 bytes of activations serve four lines.
//
// Wants -march=...+dotprod.  Included by neon_dotprod.cpp and neon_i8mm.cpp.
#pragma once
#include "neon.h"

namespace berth {
namespace {

constexpr int kDotRows = 4;  // 16 sums, 4 registers of activations and the weights fit the 32 registers

template <int lane, int Rows>
BERTH_INLINE void add_line(const int8x16_t (&w)[4], const int8x16_t (&x)[Rows], int32x4_t (&sums)[Rows][4]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sums[r][j] = vdotq_laneq_s32(sums[r][j], w[j], x[r], lane);
}

template <int lane, int Rows>
BERTH_INLINE void add_bytes(const int8_t* line, const int8x16_t (&x)[Rows], int32x4_t (&sums)[Rows][4]) {
  const int8x16_t w[4] = {bytes_at(line), bytes_at(line + 16), bytes_at(line + 32), bytes_at(line + 48)};
  add_line<lane>(w, x, sums);
}

// A line of nibbles: its low ones are 4 of depth, its high ones the next 4.
template <int lane, int Rows>
BERTH_INLINE void add_nibbles(const int8_t* line, const int8x16_t (&x)[Rows], int32x4_t (&sums)[Rows][4], int32x4_t (&more)[Rows][4]) {
  const int8x16_t both[4] = {bytes_at(line), bytes_at(line + 16), bytes_at(line + 32), bytes_at(line + 48)};
  const int8x16_t low[4] = {low_nibbles(both[0]), low_nibbles(both[1]), low_nibbles(both[2]), low_nibbles(both[3])};
  const int8x16_t high[4] = {high_nibbles(both[0]), high_nibbles(both[1]), high_nibbles(both[2]), high_nibbles(both[3])};
  add_line<lane>(low, x, sums);
  add_line<lane + 1>(high, x, more);
}

// Adds the products of `depth` values of each row with a panel to sums.  One row alone has two chains of sums: sdot takes 2 cycles or
// more, and up to four start in each.
template <int Rows, int bits, Ask ask>
BERTH_INLINE void accumulate(const int8_t* w, int64_t depth, const int8_t* values, int64_t stride, const int8_t* ahead,
                       int32x4_t (&sums)[Rows][4]) {
  constexpr bool kTwoChains = Rows == 1;
  int32x4_t second[Rows][4];
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < 4; ++j) second[r][j] = vdupq_n_s32(0);
  auto& other = kTwoChains ? second : sums;
  int64_t k = 0;
  for (; k + 16 <= depth; k += 16) {
    int8x16_t x[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) x[r] = bytes_at(values + r * stride + k);
    const int64_t offset = k * kPanel * bits / 8;
    const int8_t* line = w + offset;
    ask_for<ask>(w, ahead, offset, 0);
    ask_for<ask>(w, ahead, offset, 1);
    if constexpr (bits == 8) {
      ask_for<ask>(w, ahead, offset, 2);
      ask_for<ask>(w, ahead, offset, 3);
      add_bytes<0>(line, x, sums);
      add_bytes<1>(line + 64, x, other);
      add_bytes<2>(line + 128, x, sums);
      add_bytes<3>(line + 192, x, other);
    } else {
      add_nibbles<0>(line, x, sums, other);
      add_nibbles<2>(line + 64, x, sums, other);
    }
  }
  for (; k < depth; k += bits == 8 ? 4 : 8) {
    int8x16_t x[Rows];
    if constexpr (bits == 8) {
      for (int r = 0; r < Rows; ++r) x[r] = broadcast4(values + r * stride + k);
      add_bytes<0>(w + k * kPanel, x, sums);
    } else {
      for (int r = 0; r < Rows; ++r) x[r] = vcombine_s8(vld1_s8(values + r * stride + k), vdup_n_s8(0));
      add_nibbles<0>(w + k * kPanel / 2, x, sums, other);
    }
  }
  if constexpr (kTwoChains)
    for (int j = 0; j < 4; ++j) sums[0][j] = vaddq_s32(sums[0][j], second[0][j]);
}

template <int Rows, Ask ask>
BERTH_LOOP void dot_rows(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, const int8_t* ahead, int32_t* out) {
  int32x4_t sums[Rows][4];
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < 4; ++j) sums[r][j] = vdupq_n_s32(0);
  accumulate<Rows, 8, ask>(panel, depth, values, stride, ahead, sums);
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < 4; ++j) vst1q_s32(out + r * kPanel + 4 * j, sums[r][j]);
}

template <Ask ask>
inline void dot_up_to_four(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                           int32_t* out) {
  switch (rows) {
    case 1: return dot_rows<1, ask>(panel, depth, values, stride, ahead, out);
    case 2: return dot_rows<2, ask>(panel, depth, values, stride, ahead, out);
    case 3: return dot_rows<3, ask>(panel, depth, values, stride, ahead, out);
    default: return dot_rows<4, ask>(panel, depth, values, stride, ahead, out);
  }
}

// Any number of rows, four at a time.  Signed by signed: what is not negative needs nothing of its own.
inline void sdot(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out) {
  for (int r = 0; r < rows; r += kDotRows) {
    const int n = rows - r < kDotRows ? rows - r : kDotRows;
    if (r == 0 && ahead != nullptr)
      dot_up_to_four<Ask::each_line>(panel, depth, values, stride, n, ahead, out);
    else
      dot_up_to_four<Ask::nothing>(panel, depth, values + r * stride, stride, n, nullptr, out + r * kPanel);
  }
}

template <int Rows, int bits, Ask ask>
BERTH_LOOP void tile_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, float (*sums)[kPanel]) {
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  const int8_t* values = a.values + row * a.depth;
  const bool fits = sums_fit_floats(a);
  const int64_t units = a.units();
  clear_sums(Rows, sums);
  PanelScales scales{};
  for (int64_t u = 0, group = -1; u < units; ++u) {
    const int64_t start = u * a.unit;
    int32x4_t dots[Rows][4];
    for (int r = 0; r < Rows; ++r)
      for (int j = 0; j < 4; ++j) dots[r][j] = first_sum(fits);
    accumulate<Rows, bits, ask>(weights + start * kPanel * bits / 8, unit_depth(a, u), values + start, a.depth, nullptr, dots);
    if (start / m.group != group) group = start / m.group, scales = scales_of(m, panel, group);
    for (int r = 0; r < Rows; ++r) settle(m, a, scales, row + r, u, fits, dots[r], sums[r]);
  }
  scale_rows(a, row, Rows, sums);
}

template <int bits, Ask ask>
inline void tile_up_to_four(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  switch (rows) {
    case 1: return tile_rows<1, bits, ask>(m, panel, a, row, sums);
    case 2: return tile_rows<2, bits, ask>(m, panel, a, row, sums);
    case 3: return tile_rows<3, bits, ask>(m, panel, a, row, sums);
    default: return tile_rows<4, bits, ask>(m, panel, a, row, sums);
  }
}

// Up to four rows by one panel.  The first rows of a batch read the panel from memory, the others find it in the cache.
inline void sdot_tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  if (m.bits == 8)
    row == 0 ? tile_up_to_four<8, Ask::next_page>(m, panel, a, row, rows, sums)
             : tile_up_to_four<8, Ask::nothing>(m, panel, a, row, rows, sums);
  else
    row == 0 ? tile_up_to_four<4, Ask::next_page>(m, panel, a, row, rows, sums)
             : tile_up_to_four<4, Ask::nothing>(m, panel, a, row, rows, sums);
}

}  // namespace
}  // namespace berth
