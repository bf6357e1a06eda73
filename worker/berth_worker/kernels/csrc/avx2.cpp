// AVX2.  vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits; with |a| <= 127 and w carrying the sign of a, the
// largest sum of two products is 2 * 127 * 127 = 32258, so nothing saturates and the result is exact ("the sign trick").
#include <immintrin.h>

#include "isa.h"

namespace berth {
namespace {

constexpr int64_t kPrefetchBytes = 4096;  // of weights, in the order of reading

inline __m256i broadcast4(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Adds the products of `depth` values of each row with a panel to low (channels 0-7) and high (8-15).  Each step asks for one cache line
// at `ahead`: spread like this, reading what comes next overlaps with computing; in bursts it would not.
template <int Rows, bool Prefetch>
inline void accumulate(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride,
                       const int8_t* ahead, __m256i (&low)[Rows], __m256i (&high)[Rows]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 4) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel + 32));
    if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256i a = broadcast4(values + r * stride + k);
      const __m256i m = broadcast4(magnitudes + r * stride + k);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w0, a)), ones));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w1, a)), ones));
    }
  }
}

template <int Rows, bool Prefetch>
void dot_rows(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, const int8_t* ahead,
              int32_t* out) {
  __m256i low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  accumulate<Rows, Prefetch>(panel, depth, values, magnitudes, stride, ahead, low, high);
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel), low[r]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel + 8), high[r]);
  }
}

template <bool Prefetch>
inline void dot_prefetching(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int rows,
                            const int8_t* ahead, int32_t* out) {
  switch (rows) {
    case 1: return dot_rows<1, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    case 2: return dot_rows<2, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    case 3: return dot_rows<3, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    default: return dot_rows<4, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
  }
}

inline void dot(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int rows,
                const int8_t* ahead, int32_t* out) {
  if (ahead != nullptr) return dot_prefetching<true>(panel, depth, values, magnitudes, stride, rows, ahead, out);
  dot_prefetching<false>(panel, depth, values, magnitudes, stride, rows, nullptr, out);
}

inline __m256 scales_of(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

template <int Rows, bool Prefetch>
void tile_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, float (&sums)[kRows][kPanel]) {
  const int64_t groups = m.groups();
  const int8_t* weights = m.weights + panel * m.depth * kPanel;
  const uint16_t* scales = m.scales + panel * groups * kPanel;
  const int8_t* values = a.values + row * a.depth;
  const uint8_t* magnitudes = a.magnitudes + row * a.depth;
  const float* row_scales = a.scales + row * groups;
  __m256 low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int64_t g = 0, start = 0; g < groups; ++g, start += m.group) {
    const int64_t depth = m.depth - start < m.group ? m.depth - start : m.group;
    __m256i low_dots[Rows], high_dots[Rows];
    for (int r = 0; r < Rows; ++r) low_dots[r] = high_dots[r] = _mm256_setzero_si256();
    const int8_t* w = weights + start * kPanel;
    accumulate<Rows, Prefetch>(w, depth, values + start, magnitudes + start, a.depth, w + kPrefetchBytes, low_dots, high_dots);
    const __m256 w0 = scales_of(scales + g * kPanel), w1 = scales_of(scales + g * kPanel + 8);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256 s = _mm256_broadcast_ss(reinterpret_cast<const float*>(row_scales + r * groups + g));
      low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(_mm256_cvtepi32_ps(low_dots[r]), _mm256_mul_ps(s, w0)));
      high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(_mm256_cvtepi32_ps(high_dots[r]), _mm256_mul_ps(s, w1)));
    }
  }
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_ps(sums[r], low[r]);
    _mm256_store_ps(sums[r] + 8, high[r]);
  }
}

// The first rows of a batch read a panel from memory and ask ahead for what follows; the others find it in the cache.
template <bool Prefetch>
inline void tile_prefetching(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  switch (rows) {
    case 1: return tile_rows<1, Prefetch>(m, panel, a, row, sums);
    case 2: return tile_rows<2, Prefetch>(m, panel, a, row, sums);
    case 3: return tile_rows<3, Prefetch>(m, panel, a, row, sums);
    default: return tile_rows<4, Prefetch>(m, panel, a, row, sums);
  }
}

inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  if (row == 0) return tile_prefetching<true>(m, panel, a, row, rows, sums);
  tile_prefetching<false>(m, panel, a, row, rows, sums);
}

}  // namespace
}  // namespace berth

namespace berth {
namespace {

// vcvtps2dq rounds to nearest, ties to even (the default mode, which nothing here changes).
inline void store_rounded(int8_t* to, __m256 x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_setzero_si256());
  const __m256i bytes = _mm256_packs_epi16(words, words);
  const int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
  __builtin_memcpy(to, &low, 4);
  __builtin_memcpy(to + 4, &high, 4);
}

inline void store_rounded4(int8_t* to, __m256 x, __m256 y, __m256 z, __m256 w) {
  const __m256i xy = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_cvtps_epi32(y));
  const __m256i zw = _mm256_packs_epi32(_mm256_cvtps_epi32(z), _mm256_cvtps_epi32(w));
  const __m256i bytes = _mm256_packs_epi16(xy, zw);  // 4 bytes of each in turn: x0 y0 z0 w0 x1 y1 z1 w1
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, order));
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_ROUNDING
#define BERTH_OWN_TILE
#include "body.h"

namespace berth {
const Isa avx2_isa = BERTH_ISA_TABLE("avx2");
}
