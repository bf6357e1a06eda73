// AVX2.  vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits.  Three ways round that, all exact:
// - Where one side is not negative anyway (4-bit weights), it is the unsigned operand and below 128.
// - With |a| <= 127 and w carrying the sign of a, the largest sum of two products is 2 * 127 * 127 = 32258 ("the sign trick").
// - Matrices of 8 bits by rows with one scale, and attention's scores: the unsigned operand is w + 128, up to 255, so that two values whose
//   sum is within +-128 are safe: 128 * 255 = 32640.  Four values with a pair beyond that are heavy, 2 to 3 in 100 of them; those are halved,
//   and their other halves multiplied after the unit.  The unit's bias, -128 times its sum, is where sums start.  A third fewer instructions.
// Attention weights have 14 bits: whole in 16, they and the values, widened once for all rows, go to vpmaddwd.
#include <immintrin.h>

#include "isa.h"

namespace berth {
namespace {

constexpr int kRows = 4;

// How far ahead of reading them weights are asked for, bytes.  One row reads as fast as memory gives, and asks near: on a Zen 3 1 KiB made
// batch 1 14 % faster than 16 KiB (135M) and 18 % faster than 4 KiB (1.1B).  Rows that share them compute longer; there 1 KiB lost 5 %.
// Nibbles are asked for into L1: into L2, or farther, was slower.
template <int Rows, int Bits>
int64_t bytes_ahead_of_rows(int64_t depth) {
  if constexpr (Rows == 1) return Bits == 4 ? 2048 : 1024;
  return Bits == 4 ? 4096 : bytes_ahead(depth, 8);
}

enum class Kind { kSigned, kPositive, kNibbles };  // 8-bit weights, 8-bit weights by values that are not negative, 4-bit weights

inline __m256i broadcast4(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
inline __m256i load(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i pairs(__m256i products) { return _mm256_madd_epi16(products, _mm256_set1_epi16(1)); }

// Adds the products of `depth` values of each row with a panel to low (channels 0-7) and high (8-15).  Each step asks for one cache line
// at `ahead`: spread like this, reading what comes next overlaps with computing; in bursts it would not.  Always inline: as a function of
// its own it would keep the sums in memory.
template <int Rows, Kind kind, bool Prefetch>
inline __attribute__((always_inline)) void accumulate(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes,
                                                      int64_t stride, const int8_t* ahead, __m256i (&low)[Rows], __m256i (&high)[Rows]) {
  if constexpr (kind == Kind::kNibbles) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t k = 0; k < depth; k += 8) {
      const __m256i b0 = load(panel + k * kPanel / 2), b1 = load(panel + k * kPanel / 2 + 32);
      if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel / 2), _MM_HINT_T0);
      const __m256i w0 = _mm256_and_si256(b0, mask), w1 = _mm256_and_si256(b1, mask);
      const __m256i v0 = _mm256_and_si256(_mm256_srli_epi16(b0, 4), mask), v1 = _mm256_and_si256(_mm256_srli_epi16(b1, 4), mask);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const __m256i a = broadcast4(values + r * stride + k), b = broadcast4(values + r * stride + k + 4);
        // at most 4 * 15 * 127 in 16 bits
        low[r] = _mm256_add_epi32(low[r], pairs(_mm256_add_epi16(_mm256_maddubs_epi16(w0, a), _mm256_maddubs_epi16(v0, b))));
        high[r] = _mm256_add_epi32(high[r], pairs(_mm256_add_epi16(_mm256_maddubs_epi16(w1, a), _mm256_maddubs_epi16(v1, b))));
      }
    }
    return;
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 4) {
    const __m256i w0 = load(panel + k * kPanel), w1 = load(panel + k * kPanel + 32);
    if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel), _MM_HINT_T1);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256i a = broadcast4(values + r * stride + k);
      if constexpr (kind == Kind::kPositive) {
        low[r] = _mm256_add_epi32(low[r], pairs(_mm256_maddubs_epi16(a, w0)));
        high[r] = _mm256_add_epi32(high[r], pairs(_mm256_maddubs_epi16(a, w1)));
      } else {
        const __m256i m = broadcast4(magnitudes + r * stride + k);
        low[r] = _mm256_add_epi32(low[r], pairs(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w0, a))));
        high[r] = _mm256_add_epi32(high[r], pairs(_mm256_maddubs_epi16(m, _mm256_sign_epi8(w1, a))));
      }
    }
  }
}

// A unit of rows with one scale, eased (the file's head): value k of row r is at [r * stride + k], its heavy fours and bias at [r * units].
struct EasedRows {
  const int8_t *values, *eased;
  const uint64_t* heavy;
  const int32_t* biases;
  int64_t stride, units;
};

// The same for these, from their biases on.
template <int Rows, bool Prefetch>
inline __attribute__((always_inline)) void accumulate_eased(const int8_t* panel, const EasedRows& a, int64_t depth, const int8_t* ahead,
                                                            __m256i (&low)[Rows], __m256i (&high)[Rows]) {
  const __m256i bias = _mm256_set1_epi8(-128);
  const auto add = [&](int r, __m256i x, __m256i w0, __m256i w1) __attribute__((always_inline)) {
    low[r] = _mm256_add_epi32(low[r], pairs(_mm256_maddubs_epi16(w0, x)));
    high[r] = _mm256_add_epi32(high[r], pairs(_mm256_maddubs_epi16(w1, x)));
  };
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_set1_epi32(a.biases[r * a.units]);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 4) {
    const int8_t* w = panel + k * kPanel;
    const __m256i w0 = _mm256_xor_si256(load(w), bias), w1 = _mm256_xor_si256(load(w + 32), bias);
    if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * kPanel), _MM_HINT_T1);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) add(r, broadcast4(a.eased + r * a.stride + k), w0, w1);
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
    for (uint64_t heavy = a.heavy[r * a.units]; heavy != 0; heavy &= heavy - 1) {
      const int64_t k = 4 * __builtin_ctzll(heavy);
      const int8_t* w = panel + k * kPanel;
      add(r, _mm256_sub_epi8(broadcast4(a.values + r * a.stride + k), broadcast4(a.eased + r * a.stride + k)),
          _mm256_xor_si256(load(w), bias), _mm256_xor_si256(load(w + 32), bias));
    }
}

template <int Rows, Kind kind, bool Prefetch>
void dot_rows(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, const int8_t* ahead,
              int32_t* out) {
  __m256i low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  accumulate<Rows, kind, Prefetch>(panel, depth, values, magnitudes, stride, ahead, low, high);
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel), low[r]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * kPanel + 8), high[r]);
  }
}

template <Kind kind, bool Prefetch>
inline void dot_kind(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int rows,
                     const int8_t* ahead, int32_t* out) {
  switch (rows) {
    case 1: return dot_rows<1, kind, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    case 2: return dot_rows<2, kind, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    case 3: return dot_rows<3, kind, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
    default: return dot_rows<4, kind, Prefetch>(panel, depth, values, magnitudes, stride, ahead, out);
  }
}

inline void dot(const int8_t* panel, int64_t depth, const DotRows& of, int rows, const int8_t* ahead, int32_t* out) {
  if (ahead != nullptr) return dot_kind<Kind::kSigned, true>(panel, depth, of.values, of.magnitudes, of.stride, rows, ahead, out);
  dot_kind<Kind::kSigned, false>(panel, depth, of.values, of.magnitudes, of.stride, rows, nullptr, out);
}
inline void dot_positive(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead,
                         int32_t* out) {
  if (ahead != nullptr) return dot_kind<Kind::kPositive, true>(panel, depth, values, nullptr, stride, rows, ahead, out);
  dot_kind<Kind::kPositive, false>(panel, depth, values, nullptr, stride, rows, nullptr, out);
}

inline __m256 bf16_scales(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline __m256 fp16_scales(const uint16_t* p) { return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p))); }

// See tile in body.h for the order of operations.
template <int Rows, int Bits, bool RowScale, bool Prefetch>
void tile_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, float (&sums)[kRows][kPanel]) {
  const int64_t units = a.units();
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  const uint16_t* scales = m.scales + panel * m.panel_scales();
  const float* row_scales = a.scales + row * units;
  __m256 low[Rows], high[Rows];
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int64_t u = 0, start = 0; u < units; ++u, start += a.unit) {
    const int64_t depth = a.depth - start < a.unit ? a.depth - start : a.unit, group = start / m.group;
    __m256i low_dots[Rows], high_dots[Rows];
    const int8_t* w = weights + start * kPanel * Bits / 8;
    if constexpr (Bits == 8 && RowScale) {
      const int64_t at = row * a.depth + start, of = row * units + u;
      accumulate_eased<Rows, Prefetch>(w, {a.values + at, a.eased + at, a.heavy + of, a.biases + of, a.depth, units}, depth,
                                       w + bytes_ahead_of_rows<Rows, 8>(a.depth), low_dots, high_dots);
    } else {
      for (int r = 0; r < Rows; ++r) low_dots[r] = high_dots[r] = _mm256_setzero_si256();
      accumulate<Rows, Bits == 4 ? Kind::kNibbles : Kind::kSigned, Prefetch>(
          w, depth, a.values + row * a.depth + start, a.magnitudes + row * a.depth + start, a.depth,
          w + bytes_ahead_of_rows<Rows, Bits>(a.depth), low_dots, high_dots);
    }
    __m256 w0, w1, m0, m1;
    if constexpr (Bits == 8) {
      w0 = bf16_scales(scales + group * kPanel), w1 = bf16_scales(scales + group * kPanel + 8);
    } else {
      const uint16_t* s = scales + group * kPanel * (m.minima ? 2 : 1);
      const __m256 eight = _mm256_set1_ps(-8.0f);
      w0 = fp16_scales(s), w1 = fp16_scales(s + 8);
      m0 = m.minima ? fp16_scales(s + 16) : _mm256_mul_ps(w0, eight), m1 = m.minima ? fp16_scales(s + 24) : _mm256_mul_ps(w1, eight);
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m256 x0 = _mm256_cvtepi32_ps(low_dots[r]), x1 = _mm256_cvtepi32_ps(high_dots[r]);
      if constexpr (RowScale) {
        low[r] = _mm256_fmadd_ps(x0, w0, low[r]);
        high[r] = _mm256_fmadd_ps(x1, w1, high[r]);
      } else {
        const __m256 s = _mm256_broadcast_ss(row_scales + r * units + u);
        low[r] = _mm256_fmadd_ps(x0, _mm256_mul_ps(s, w0), low[r]);
        high[r] = _mm256_fmadd_ps(x1, _mm256_mul_ps(s, w1), high[r]);
      }
      if constexpr (Bits == 4) {
        const __m256 sum = _mm256_broadcast_ss(a.weighted_sums + (row + r) * units + u);
        low[r] = _mm256_fmadd_ps(sum, m0, low[r]);
        high[r] = _mm256_fmadd_ps(sum, m1, high[r]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const __m256 s = RowScale ? _mm256_broadcast_ss(a.scales + row + r) : _mm256_setzero_ps();
    _mm256_store_ps(sums[r], RowScale ? _mm256_mul_ps(low[r], s) : low[r]);
    _mm256_store_ps(sums[r] + 8, RowScale ? _mm256_mul_ps(high[r], s) : high[r]);
  }
}

template <int Bits, bool RowScale, bool Prefetch>
inline void tile_of(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  switch (rows) {
    case 1: return tile_rows<1, Bits, RowScale, Prefetch>(m, panel, a, row, sums);
    case 2: return tile_rows<2, Bits, RowScale, Prefetch>(m, panel, a, row, sums);
    case 3: return tile_rows<3, Bits, RowScale, Prefetch>(m, panel, a, row, sums);
    default: return tile_rows<4, Bits, RowScale, Prefetch>(m, panel, a, row, sums);
  }
}

// The first rows of a batch read a panel from memory and ask ahead for what follows; the others find it in the cache.
template <bool Prefetch>
inline void tile_prefetching(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  if (m.bits == 4) return tile_of<4, false, Prefetch>(m, panel, a, row, rows, sums);
  if (a.row_scale) return tile_of<8, true, Prefetch>(m, panel, a, row, rows, sums);
  tile_of<8, false, Prefetch>(m, panel, a, row, rows, sums);
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

// Of 16 tokens, rounded, in the order 0 2 1 3, 8 10 9 11, 4 6 5 7, 12 14 13 15.
inline void store_words(int16_t* to, __m256 x, __m256 y) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_cvtps_epi32(y));  // four of each in turn
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_shuffle_epi8(words, order));
}

inline __m256 choose(__m256 x, __m256 y, __m256 u, __m256 v) { return _mm256_blendv_ps(v, u, _mm256_cmp_ps(x, y, _CMP_GT_OQ)); }
inline __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }  // the second where they are equal or not numbers
inline __m256 to_float(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline float sum_of(__m256 x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest_of(__m256 x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)), two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Eases a row of values (the file's head), unit by unit: all heavy fours at once, each half of them within the bound.
inline void ease(const int8_t* values, int64_t n, int64_t unit, int8_t* eased, uint64_t* heavies, int32_t* biases) {
  const __m256i top = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
  for (int64_t start = 0; start < n; start += unit, values += unit, eased += unit) {
    const int64_t depth = n - start < unit ? n - start : unit;
    __m256i sums = zero;
    uint64_t heavy = 0;
    for (int64_t k = 0; k < depth; k += 32) {
      const int64_t fours = depth - k < 32 ? (depth - k) / 4 : 8;
      const __m256i some = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(fours)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      const __m256i x = _mm256_maskload_epi32(reinterpret_cast<const int*>(values + k), some);
      const __m256i two = _mm256_maddubs_epi16(_mm256_set1_epi8(1), x), beyond = _mm256_cmpgt_epi16(_mm256_abs_epi16(two), _mm256_set1_epi16(128));
      const __m256i four = _mm256_xor_si256(_mm256_cmpeq_epi32(beyond, zero), _mm256_set1_epi8(-1));
      const __m256i half = _mm256_xor_si256(_mm256_avg_epu8(_mm256_xor_si256(x, top), top), top);  // (x + 1) / 2, rounded down
      _mm256_maskstore_epi32(reinterpret_cast<int*>(eased + k), some, _mm256_blendv_epi8(x, half, four));
      heavy |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_castsi256_ps(four))) << (k / 4);
      sums = _mm256_add_epi32(sums, pairs(two));
    }
    *heavies++ = heavy;
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    *biases++ = -128 * (_mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1));
  }
}

}  // namespace
}  // namespace berth

#define BERTH_READS_MAGNITUDES
#define BERTH_OWN_LANES
#define BERTH_OWN_ROUNDING
#define BERTH_OWN_TILE
#define BERTH_OWN_EASE
#define BERTH_OWN_ATTEND
#include "body.h"

namespace berth {
namespace {

// The products of queries with the keys of a chunk, as those of rows with weights.
constexpr int64_t kMostEased = 256;  // fours of a query fit into 64 bits

template <int Rows, bool Prefetch>
inline void score_rows(const int8_t* keys, const EasedRows& queries, int64_t depth, const int8_t* ahead, int32_t* out, int64_t stride) {
  __m256i low[Rows], high[Rows];
  accumulate_eased<Rows, Prefetch>(keys, queries, depth, ahead, low, high);
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * stride), low[r]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + r * stride + 8), high[r]);
  }
}
template <bool Prefetch>
inline void score_block(const int8_t* keys, const EasedRows& queries, int64_t depth, int rows, const int8_t* ahead, int32_t* out,
                        int64_t stride) {
  switch (rows) {
    case 1: return score_rows<1, Prefetch>(keys, queries, depth, ahead, out, stride);
    case 2: return score_rows<2, Prefetch>(keys, queries, depth, ahead, out, stride);
    case 3: return score_rows<3, Prefetch>(keys, queries, depth, ahead, out, stride);
    default: return score_rows<4, Prefetch>(keys, queries, depth, ahead, out, stride);
  }
}

// Keeps GCC from adding products to each other before they are added to a sum, as it then runs out of registers.
inline void hold(__m256i& x) { asm("" : "+x"(x)); }

// A chunk's attention weights, of 14 bits in 16, times 16 dims of its values: one vpmaddwd where two planes of 7 bits take two vpmaddubsw and
// two of those.  Of four tokens the even ones' values are widened into one vector and the odd ones' into another, so that a sum is one dim's;
// weights lie in the order of store_words.  What is widened is kept for the rows that come after.
enum class Wide { kMade, kMadeAndKept, kKept };
template <int Rows, Wide wide, bool Prefetch>
__attribute__((noinline)) void blend_rows(const int8_t* const* values, int64_t blocks, const int16_t* weights, int64_t stride,
                                          const int8_t* const* ahead, int16_t* keep, const float* scales, float* out, int64_t out_stride) {
  const __m256i even = _mm256_set1_epi16(1);
  __m256i low[Rows], high[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int64_t b = 0; b < blocks; ++b)
#pragma GCC unroll 4
    for (int64_t k = 0; k < kPanel; k += 4) {
      const int64_t token = k == 4 ? 8 : k == 8 ? 4 : k;  // whose weight is at k
      auto* kept = reinterpret_cast<__m256i*>(keep + (b * kPanel + k) * kPanel);
      __m256i x[4];  // even and odd tokens of dims 0-7, then of dims 8-15
      if constexpr (wide == Wide::kKept) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = _mm256_load_si256(kept + i);
      } else {
        if constexpr (Prefetch) _mm_prefetch(reinterpret_cast<const char*>(ahead[b] + k * kPanel), _MM_HINT_T1);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const __m256i v = load(values[b] + token * kPanel + 32 * i);
          x[2 * i] = _mm256_maddubs_epi16(even, v), x[2 * i + 1] = _mm256_srai_epi16(v, 8);
        }
        if constexpr (wide == Wide::kMadeAndKept)
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) _mm256_store_si256(kept + i, x[i]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const int16_t* w = weights + r * stride + b * kPanel + k;
        const __m256i evens = broadcast4(w), odds = broadcast4(w + 2);
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(x[0], evens)), hold(low[r]);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(x[2], evens)), hold(high[r]);
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(x[1], odds)), hold(low[r]);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(x[3], odds)), hold(high[r]);
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const __m256 scale = _mm256_broadcast_ss(scales + r);
    _mm256_storeu_ps(out + r * out_stride, _mm256_mul_ps(_mm256_cvtepi32_ps(low[r]), scale));
    _mm256_storeu_ps(out + r * out_stride + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high[r]), scale));
  }
}

// A chunk whose queries are eased and whose weights are whole.
class WholeChunk : public Chunk {
 public:
  using Chunk::Chunk;

  void run() {
    if (c.head_dim <= kMostEased)
      score_eased();
    else
      for (int64_t b = 0; b < c.blocks; ++b) score(b);
    clear_padding();
    soften([] {});
    for (int64_t row = 0; row < c.rows; ++row) round(row);
    blend_whole();
  }

 private:
  int16_t* weights_of(int64_t row) { return reinterpret_cast<int16_t*>(planes[2 * row]); }  // 16 bits where others have two of 8

  void score_eased() {
    alignas(64) int8_t eased[kAttentionRows * kMostEased];
    uint64_t heavy[kAttentionRows];
    int32_t biases[kAttentionRows];
    const int64_t d = c.head_dim;
    for (int64_t row = 0; row < c.rows; ++row) ease(c.values + row * d, d, d, eased + row * d, heavy + row, biases + row);
    for (int64_t b = 0; b < c.blocks; ++b) {
      const int8_t* ahead = ask(b);
      for (int64_t row = 0; row < c.rows; row += kRows) {
        const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
        const EasedRows queries{c.values + row * d, eased + row * d, heavy + row, biases + row, d, 1};
        if (row == 0 && ahead != nullptr)
          score_block<true>(block[b], queries, d, n, ahead, dots[row] + b * kPanel, kWidth);
        else
          score_block<false>(block[b], queries, d, n, nullptr, dots[row] + b * kPanel, kWidth);
      }
    }
  }

  void round(int64_t row) {
    if (c.ages[row] < c.position) {
      __builtin_memset(weights_of(row), 0, 2 * kWidth);
      return;
    }
    const float* x = row_of(row);
    int16_t* to = weights_of(row);
    const Floats inverse = all(inverses[row]);
    for (int64_t i = 0; i < padded * kPanel; i += kPanel) store_words(to + i, load(x + i) * inverse, load(x + i + kLanes) * inverse);
  }

  template <Wide wide, bool Prefetch>
  void blend_some(int64_t row, int64_t rows, int64_t dim, const int8_t* const* values, const int8_t* const* ahead, int16_t* keep) {
    const auto blend = [&]<int Rows>() {
      blend_rows<Rows, wide, Prefetch>(values, c.blocks, weights_of(row), kWidth, ahead, keep, scales + row, c.out + row * c.head_dim + dim,
                                       c.head_dim);
    };
    switch (rows) {
      case 1: return blend.template operator()<1>();
      case 2: return blend.template operator()<2>();
      case 3: return blend.template operator()<3>();
      default: return blend.template operator()<4>();
    }
  }

  void blend_whole() {
    const int8_t *values[kChunkBlocks], *ahead[kChunkBlocks];
    alignas(64) int16_t keep[kWidth * kPanel];
    const int64_t groups = (c.rows + kRows - 1) / kRows, first = c.rows / groups;  // of rows, as even as can be
    for (int64_t dim = 0; dim < c.head_dim; dim += kPanel) {
      const int64_t at = (c.head_dim + dim) * kPanel;
      for (int64_t b = 0; b < c.blocks; ++b) values[b] = block[b] + at;
      if (c.next_blocks > 0) {
        for (int64_t b = 0; b < c.blocks; ++b) ahead[b] = after(b < c.next_blocks ? b : 0) + at;
        groups > 1 ? blend_some<Wide::kMadeAndKept, true>(0, first, dim, values, ahead, keep)
                   : blend_some<Wide::kMade, true>(0, first, dim, values, ahead, keep);
      } else {
        groups > 1 ? blend_some<Wide::kMadeAndKept, false>(0, first, dim, values, nullptr, keep)
                   : blend_some<Wide::kMade, false>(0, first, dim, values, nullptr, keep);
      }
      for (int64_t g = 1; g < groups; ++g) {
        const int64_t row = c.rows * g / groups;
        blend_some<Wide::kKept, false>(row, c.rows * (g + 1) / groups - row, dim, values, nullptr, keep);
      }
    }
  }
};

void attend(const AttentionChunk& c) { WholeChunk(c).run(); }

}  // namespace

const Isa avx2_isa = BERTH_ISA_TABLE("avx2");

}  // namespace berth
