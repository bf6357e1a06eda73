// What AVX-512 units share: products with VNNI, and rounding.  Included once by each unit, before body.h.
#pragma once
#include <immintrin.h>

#include "isa.h"

namespace berth {
namespace {

constexpr int kRows = 8;       // of a dot product: attention
constexpr int kTileRows = 12;  // of a product with a matrix: two registers a row, of 32

enum class Kind { kSigned, kPositive, kNibbles };  // 8-bit weights, 8-bit weights by values that are not negative, 4-bit weights

inline __m512i broadcast4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

// Adds the products of `depth` values of each row with a panel to acc.  Each step asks for one cache line at `ahead`: spread like this,
// reading what comes next overlaps with computing; in bursts it would not.
template <int Rows, Kind kind, bool Prefetch>
inline __attribute__((always_inline)) void accumulate(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride,
                                                      const int8_t* ahead, __m512i (&acc)[Rows]) {
  if constexpr (kind == Kind::kNibbles) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int64_t k = 0; k < depth; k += 8) {
      const __m512i both = _mm512_load_si512(panel + k * kPanel / 2);
      if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel / 2), _MM_HINT_T1);
      const __m512i low = _mm512_and_si512(both, mask), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        acc[r] = _mm512_dpbusd_epi32(acc[r], low, broadcast4(values + r * stride + k));
        acc[r] = _mm512_dpbusd_epi32(acc[r], high, broadcast4(values + r * stride + k + 4));
      }
    }
  } else {
    const __m512i bias = _mm512_set1_epi8(-128);
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; k += 4) {
      __m512i w = _mm512_load_si512(panel + k * kPanel);
      if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel), _MM_HINT_T1);
      if constexpr (kind == Kind::kSigned) w = _mm512_xor_si512(w, bias);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const __m512i a = broadcast4(values + r * stride + k);
        acc[r] = kind == Kind::kSigned ? _mm512_dpbusd_epi32(acc[r], w, a) : _mm512_dpbusd_epi32(acc[r], a, w);
      }
    }
  }
}

template <int Rows, Kind kind, bool Prefetch>
inline void dot_rows(const int8_t* panel, int64_t depth, const DotRows& of, const int8_t* ahead, int32_t* out) {
  __m512i acc[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = kind == Kind::kSigned ? _mm512_set1_epi32(of.biases[r]) : _mm512_setzero_si512();
  accumulate<Rows, kind, Prefetch>(panel, depth, of.values, of.stride, ahead, acc);
  for (int r = 0; r < Rows; ++r) _mm512_store_si512(out + r * kPanel, acc[r]);
}

template <Kind kind, bool Prefetch>
inline void dot_kind(const int8_t* panel, int64_t depth, const DotRows& of, int rows, const int8_t* ahead, int32_t* out) {
  switch (rows) {
    case 1: return dot_rows<1, kind, Prefetch>(panel, depth, of, ahead, out);
    case 2: return dot_rows<2, kind, Prefetch>(panel, depth, of, ahead, out);
    case 3: return dot_rows<3, kind, Prefetch>(panel, depth, of, ahead, out);
    case 4: return dot_rows<4, kind, Prefetch>(panel, depth, of, ahead, out);
    case 5: return dot_rows<5, kind, Prefetch>(panel, depth, of, ahead, out);
    case 6: return dot_rows<6, kind, Prefetch>(panel, depth, of, ahead, out);
    case 7: return dot_rows<7, kind, Prefetch>(panel, depth, of, ahead, out);
    default: return dot_rows<8, kind, Prefetch>(panel, depth, of, ahead, out);
  }
}

inline void dot(const int8_t* panel, int64_t depth, const DotRows& of, int rows, const int8_t* ahead, int32_t* out) {
  if (ahead != nullptr) return dot_kind<Kind::kSigned, true>(panel, depth, of, rows, ahead, out);
  dot_kind<Kind::kSigned, false>(panel, depth, of, rows, nullptr, out);
}
inline void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                         int32_t* out) {
  if (ahead != nullptr) return dot_kind<Kind::kPositive, true>(panel, depth, {values, nullptr, nullptr, stride}, rows, ahead, out);
  dot_kind<Kind::kPositive, false>(panel, depth, {values, nullptr, nullptr, stride}, rows, nullptr, out);
}

inline __m512 bf16_scales(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline __m512 fp16_scales(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p))); }

// Rows of activations by one panel, straight into the output; see tile in body.h for the order of operations.
template <int Rows, int Bits, bool RowScale, bool Prefetch>
void tile_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, float* out, int64_t stride, bool add) {
  const int64_t units = a.units();
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  const uint16_t* scales = m.scales + panel * m.panel_scales();
  const int64_t group_scales = kPanel * (m.minima ? 2 : 1), ahead = bytes_ahead(a.depth, Bits);
  const int8_t* values = a.values + row * a.depth;
  const int32_t* biases = a.biases + row * units;
  __m512 sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r] = _mm512_setzero_ps();
  for (int64_t u = 0, start = 0; u < units; ++u, start += a.unit) {
    const int64_t depth = a.depth - start < a.unit ? a.depth - start : a.unit, group = start / m.group;
    __m512i acc[Rows];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[r] = Bits == 8 ? _mm512_set1_epi32(biases[r * units + u]) : _mm512_setzero_si512();
    const int8_t* w = weights + start * kPanel * Bits / 8;
    accumulate<Rows, Bits == 4 ? Kind::kNibbles : Kind::kSigned, Prefetch>(w, depth, values + start, a.depth, w + ahead, acc);
    const uint16_t* own = scales + group * group_scales;
    if constexpr (Prefetch && Bits == 4)  // a line of scales and minima for each four of weights
      _mm_prefetch(reinterpret_cast<const char*>(own) + ahead / 4, _MM_HINT_T1);
    const __m512 scale = Bits == 8 ? bf16_scales(own) : fp16_scales(own);
    __m512 minimum = _mm512_setzero_ps();
    if constexpr (Bits == 4) minimum = m.minima ? fp16_scales(own + kPanel) : _mm512_mul_ps(scale, _mm512_set1_ps(-8.0f));
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const __m512 x = _mm512_cvtepi32_ps(acc[r]);
      if constexpr (RowScale)
        sums[r] = _mm512_fmadd_ps(x, scale, sums[r]);
      else
        sums[r] = _mm512_fmadd_ps(x, _mm512_mul_ps(_mm512_set1_ps(a.scales[(row + r) * units + u]), scale), sums[r]);
      if constexpr (Bits == 4)
        sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(a.weighted_sums[(row + r) * units + u]), minimum, sums[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    float* to = out + r * stride;
    const __m512 sum = RowScale ? _mm512_mul_ps(sums[r], _mm512_set1_ps(a.scales[row + r])) : sums[r];
    _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
  }
}

template <int Bits, bool RowScale, bool Prefetch>
inline void tile_of(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float* out, int64_t stride, bool add) {
  switch (rows) {
    case 1: return tile_rows<1, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 2: return tile_rows<2, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 3: return tile_rows<3, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 4: return tile_rows<4, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 5: return tile_rows<5, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 6: return tile_rows<6, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 7: return tile_rows<7, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 8: return tile_rows<8, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 9: return tile_rows<9, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 10: return tile_rows<10, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    case 11: return tile_rows<11, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
    default: return tile_rows<12, Bits, RowScale, Prefetch>(m, panel, a, row, out, stride, add);
  }
}

// The first rows of a batch read a panel from memory and ask ahead for what follows; the others find it in the cache.
template <bool Prefetch>
inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float* out, int64_t stride, bool add) {
  if (m.bits == 4) return tile_of<4, false, Prefetch>(m, panel, a, row, rows, out, stride, add);
  if (a.row_scale) return tile_of<8, true, Prefetch>(m, panel, a, row, rows, out, stride, add);
  tile_of<8, false, Prefetch>(m, panel, a, row, rows, out, stride, add);
}

void vnni_matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = first; panel < last; ++panel) {
    float* to = out + (panel - first) * kPanel;
    for (int64_t i = 0, row = 0; i < tiles; ++i) {  // of nearly equal size
      const int64_t n = (rows - row + tiles - i - 1) / (tiles - i);
      if (i == 0)
        tile<true>(m, panel, a, row, static_cast<int>(n), to + row * stride, stride, add);
      else
        tile<false>(m, panel, a, row, static_cast<int>(n), to + row * stride, stride, add);
      row += n;
    }
  }
}

// The products of a chunk's attention weights with 16 dims of its values; see blend_blocks in attend.h.
template <int Rows, bool Prefetch>
inline void blend_rows(const int8_t* const* values, int64_t blocks, const int8_t* weights, int64_t stride, const int8_t* const* ahead,
                       int32_t* out) {
  __m512i acc[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = _mm512_setzero_si512();
  for (int64_t b = 0; b < blocks; ++b)
    accumulate<Rows, Kind::kPositive, Prefetch>(values[b], kPanel, weights + b * kPanel, stride, Prefetch ? ahead[b] : nullptr, acc);
  for (int r = 0; r < Rows; ++r) _mm512_store_si512(out + r * kPanel, acc[r]);
}
inline void blend_blocks(const int8_t* const* values, int64_t blocks, const int8_t* weights, int64_t stride, int rows,
                         const int8_t* const* ahead, int32_t* out) {
  const auto blend = [&]<bool Prefetch>() {
    switch (rows) {
      case 2: return blend_rows<2, Prefetch>(values, blocks, weights, stride, ahead, out);
      case 4: return blend_rows<4, Prefetch>(values, blocks, weights, stride, ahead, out);
      case 6: return blend_rows<6, Prefetch>(values, blocks, weights, stride, ahead, out);
      default: return blend_rows<8, Prefetch>(values, blocks, weights, stride, ahead, out);
    }
  };
  ahead != nullptr ? blend.template operator()<true>() : blend.template operator()<false>();
}

// vcvtps2dq rounds to nearest, ties to even (the default mode, which nothing here changes).
inline void store_bytes(int8_t* to, __m512i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x)); }
inline void store_rounded(int8_t* to, __m512 x) { store_bytes(to, _mm512_cvtps_epi32(x)); }
inline void store_rounded4(int8_t* to, __m512 x, __m512 y, __m512 z, __m512 w) {
  store_rounded(to, x);
  store_rounded(to + 16, y);
  store_rounded(to + 32, z);
  store_rounded(to + 48, w);
}
// Packs work within 128 bits: the doublewords of the result are of x, y, z, w in turn, and are put in order at the end.
inline void store_planes4(int8_t* high, int8_t* low, __m512 x, __m512 y, __m512 z, __m512 w) {
  const __m512i xy = _mm512_packs_epi32(_mm512_cvtps_epi32(x), _mm512_cvtps_epi32(y));
  const __m512i zw = _mm512_packs_epi32(_mm512_cvtps_epi32(z), _mm512_cvtps_epi32(w)), mask = _mm512_set1_epi16(127);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i h = _mm512_packs_epi16(_mm512_srli_epi16(xy, 7), _mm512_srli_epi16(zw, 7));
  const __m512i l = _mm512_packs_epi16(_mm512_and_si512(xy, mask), _mm512_and_si512(zw, mask));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, h));
  _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, l));
}

inline int32_t sum_of(const int8_t* values, int64_t n) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    const __mmask64 some = n - i < 64 ? (uint64_t{1} << (n - i)) - 1 : ~uint64_t{0};
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_maskz_loadu_epi8(some, values + i));
  }
  return _mm512_reduce_add_epi32(sums);
}

inline __m512 first_lanes(int64_t n, __m512 x, float otherwise) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(otherwise), static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1), x);
}
inline __m512 choose(__m512 x, __m512 y, __m512 u, __m512 v) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), v, u);
}
inline __m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }  // the second where they are equal or not numbers
inline __m512 to_float(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline __m512 fraction(__m512 x) { return _mm512_reduce_ps(x, 0); }  // x less the nearest whole number, of two the even one: exact
inline __m512 scaled(__m512 x, __m512 whole) { return _mm512_scalef_ps(x, whole); }  // x 2^whole
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum_of(__m512 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest_of(__m512 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace berth

#define BERTH_LANES 16
#define BERTH_READS_BIASES
#define BERTH_OWN_LANES
#define BERTH_OWN_POWER
#define BERTH_OWN_ROUNDING
#define BERTH_OWN_FOUR_PLANES
#define BERTH_OWN_BLEND
#define BERTH_OWN_MATMUL
