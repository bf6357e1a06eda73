// AVX2.  vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits; with |a| <= 127 and w carrying the sign of a, the
// largest sum of two products is 2 * 127 * 127 = 32258, so nothing saturates and the result is exact ("the sign trick").
#include <immintrin.h>

#include "isa.h"

namespace berth {
namespace {

inline __m256i broadcast4(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

template <int Rows>
inline void dot_rows(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int32_t* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int64_t k = 0; k < depth; k += 4) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + k * kPanel + 32));
    if constexpr (Rows == 1) _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanel + 2048), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256i a = broadcast4(values + r * stride + k);
      const __m256i m = broadcast4(magnitudes + r * stride + k);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w0, a)), ones));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w1, a)), ones));
    }
  }
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

}  // namespace
}  // namespace berth

#include "body.h"

namespace berth {
const Isa avx2_isa = BERTH_ISA_TABLE("avx2");
}
