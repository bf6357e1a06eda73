// AVX2.  vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits; with |a| <= 127 and w carrying the sign of a, the
// largest sum of two products is 2 * 127 * 127 = 32258, so nothing saturates and the result is exact ("the sign trick").
#include <immintrin.h>

#include "isa.h"

namespace berth {
namespace {

constexpr int64_t kPrefetchBytes = 4096;

inline __m256i broadcast4(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Adds the products of 4 * steps values of each row with a panel to low (channels 0-7) and high (8-15).
template <int Rows>
inline void accumulate(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride,
                       __m256i (&low)[Rows], __m256i (&high)[Rows]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 4) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel + 32));
    if constexpr (Rows == 1) _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanel + kPrefetchBytes), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256i a = broadcast4(values + r * stride + k);
      const __m256i m = broadcast4(magnitudes + r * stride + k);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w0, a)), ones));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w1, a)), ones));
    }
  }
}

template <int Rows>
void dot_rows(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int32_t* out) {
  __m256i low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  accumulate<Rows>(panel, depth, values, magnitudes, stride, low, high);
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel), low[r]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel + 8), high[r]);
  }
}

inline void dot(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int rows, int32_t* out) {
  switch (rows) {
    case 1: return dot_rows<1>(panel, depth, values, magnitudes, stride, out);
    case 2: return dot_rows<2>(panel, depth, values, magnitudes, stride, out);
    case 3: return dot_rows<3>(panel, depth, values, magnitudes, stride, out);
    default: return dot_rows<4>(panel, depth, values, magnitudes, stride, out);
  }
}

inline __m256 scales_of(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

template <int Rows>
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
    accumulate<Rows>(weights + start * kPanel, depth, values + start, magnitudes + start, a.depth, low_dots, high_dots);
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

inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  switch (rows) {
    case 1: return tile_rows<1>(m, panel, a, row, sums);
    case 2: return tile_rows<2>(m, panel, a, row, sums);
    case 3: return tile_rows<3>(m, panel, a, row, sums);
    default: return tile_rows<4>(m, panel, a, row, sums);
  }
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
