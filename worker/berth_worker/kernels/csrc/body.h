// The arithmetic of every instruction set, written once.  Included by scalar.cpp and by each set's unit, after kRows, `dot` and
// `dot_positive` are defined there; a unit may bring its own rounding, `tile` or `matmul` too, and says which by BERTH_OWN_*.
//
// Vectors are GCC's and clang's own (vector_size): eight floats, which the compiler maps to whatever the set has.  Every operation is
// IEEE's on each lane and sums run in a fixed order, so all sets give the same bits: compile with -ffp-contract=off, never -ffast-math.
// Everything is in an anonymous namespace and uses no standard templates: a function shared between units could be linked in the version
// of another unit's instruction set.
#include "isa.h"

namespace berth {
namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
constexpr int kLanes = 8;
constexpr float kNothing = -__builtin_inff();
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x), ties to even, in the low bits for |x| < 2^22
constexpr int64_t kBlocksAhead = 3;
constexpr int32_t kRoundBits = 0x4B400000;
constexpr int kMostUnit = 128;     // the largest unit of activations for matrices of 4 bits
constexpr int kGainedAtOnce = 64;  // the largest unit of activations whose rows are multiplied by a gain

inline Floats load(const float* p) { Floats x; __builtin_memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof x); }
inline Floats all(float x) { return Floats{x, x, x, x, x, x, x, x}; }
#if !defined(BERTH_OWN_LANES)
// u where x > y, else v
inline Floats choose(Floats x, Floats y, Floats u, Floats v) { return x > y ? u : v; }
inline Floats to_float(const int32_t* p) { Ints x; __builtin_memcpy(&x, p, sizeof x); return __builtin_convertvector(x, Floats); }
inline Floats small_to_float(const int32_t* p) { return to_float(p); }  // of magnitudes below 2^22
#endif
inline Floats larger(Floats a, Floats b) { return choose(a, b, a, b); }
inline float larger(float a, float b) { return a > b ? a : b; }
inline Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7FFFFFFF); }
inline float bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

#if !defined(BERTH_OWN_LANES)
inline float sum_of(Floats x) {
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}
inline float largest_of(Floats x) {
  x = larger(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = larger(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  return larger(x[0], x[1]);
}
#endif

#if !defined(BERTH_OWN_ROUNDING)
// round(x[i]) to int8, ties to even, for |x[i]| <= 127: the low byte of each lane.
inline void store_rounded(int8_t* to, Floats x) {
  const Ints bits = (Ints)(x + kRound);
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(bits[i]);
}
inline void store_rounded4(int8_t* to, Floats x, Floats y, Floats z, Floats w) {
  store_rounded(to, x);
  store_rounded(to + kLanes, y);
  store_rounded(to + 2 * kLanes, z);
  store_rounded(to + 3 * kLanes, w);
}
#endif

// exp(x) to 2 ulp for x <= 0 (Cephes expf: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2]); below -87, exp(-87).
inline Floats exponential(Floats x) {
  x = larger(x, all(-87.0f));
  const Floats shifted = x * 1.44269504088896341f + kRound;
  const Floats whole = shifted - kRound;
  const Floats r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  return p * (Floats)(((Ints)shifted - (kRoundBits - 127)) << 23);
}
inline float exponential(float x) { return exponential(all(x))[0]; }

inline float largest_magnitude(const float* x, int64_t n) {
  Floats most = all(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) most = larger(magnitude(load(x + i)), most);
  float rest = 0.0f;
  for (; i < n; ++i) rest = larger(__builtin_fabsf(x[i]), rest);
  return larger(largest_of(most), rest);
}

inline void round_row(const float* x, int64_t n, float inverse, int8_t* to) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    store_rounded4(to + i, load(x + i) * inverse, load(x + i + kLanes) * inverse, load(x + i + 2 * kLanes) * inverse,
                   load(x + i + 3 * kLanes) * inverse);
  for (; i + kLanes <= n; i += kLanes) store_rounded(to + i, load(x + i) * inverse);
  for (; i < n; ++i) {
    const float shifted = x[i] * inverse + kRound;
    int32_t bits;
    __builtin_memcpy(&bits, &shifted, 4);
    to[i] = static_cast<int8_t>(bits);
  }
}

inline void magnitudes_of([[maybe_unused]] const int8_t* values, [[maybe_unused]] int64_t n, [[maybe_unused]] uint8_t* to) {
#if defined(BERTH_READS_MAGNITUDES)
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(values[i] < 0 ? -values[i] : values[i]);
#endif
}

inline int32_t sum_of(const int8_t* values, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return sum;
}

// a * b + c, rounded once
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

float inverse_rms(const float* row, int64_t n, float epsilon) {
  Floats even = all(0.0f), odd = even;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Floats a = load(row + i), b = load(row + i + kLanes);
    even += a * a;
    odd += b * b;
  }
  float rest = 0.0f;
  for (; i < n; ++i) rest += row[i] * row[i];
  return 1.0f / __builtin_sqrtf((sum_of(even + odd) + rest) / static_cast<float>(n) + epsilon);
}

void quantize(const float* row, float scale, const float* gain, const Activations& a, int64_t r) {
  alignas(64) float gained[kGainedAtOnce];
  int8_t* values = a.values + r * a.depth;
  int32_t* biases = a.biases + r * a.units();
  const float step = scale / 127.0f;
  if (a.row_scale) {  // without a gain: rotated models have none left
    const float top = largest_magnitude(row, a.depth);
    a.scales[r] = top * step;
    round_row(row, a.depth, top > 0.0f ? 127.0f / top : 0.0f, values);
    for (int64_t start = 0; start < a.depth; start += a.unit)
      *biases++ = -128 * sum_of(values + start, a.depth - start < a.unit ? a.depth - start : a.unit);
  } else {
    float *scales = a.scales + r * a.units(), *sums = a.weighted_sums + r * a.units();
    for (int64_t start = 0; start < a.depth; start += a.unit) {
      const int64_t n = a.depth - start < a.unit ? a.depth - start : a.unit;
      const float* x = row + start;
      if (gain != nullptr) {
        for (int64_t i = 0; i < n; ++i) gained[i] = x[i] * gain[start + i];
        x = gained;
      }
      const float top = largest_magnitude(x, n);
      round_row(x, n, top > 0.0f ? 127.0f / top : 0.0f, values + start);
      const int32_t sum = sum_of(values + start, n);
      *scales = top * step;
      *sums++ = static_cast<float>(sum) * *scales++;
      *biases++ = -128 * sum;
    }
  }
  magnitudes_of(values, a.depth, a.magnitudes + r * a.depth);
}

float quantize_head(const float* x, int64_t n, int8_t* values, uint8_t* magnitudes, int32_t* bias) {
  const float top = largest_magnitude(x, n);
  round_row(x, n, top > 0.0f ? 127.0f / top : 0.0f, values);
  magnitudes_of(values, n, magnitudes);
  *bias = -128 * sum_of(values, n);
  return top / 127.0f;
}

void hadamard(float* x, int64_t n) {
  int64_t step = 1;
  if (n >= kLanes) {
    const Floats one = {1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1}, four = {1, 1, 1, 1, -1, -1, -1, -1};
    for (int64_t i = 0; i < n; i += kLanes) {  // the pairs inside a vector
      Floats v = load(x + i);
      v = v * one + __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
      v = v * two + __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
      v = v * four + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
      store(x + i, v);
    }
    for (step = kLanes; step < n; step *= 2)
      for (int64_t base = 0; base < n; base += 2 * step)
        for (int64_t i = base; i < base + step; i += kLanes) {
          const Floats a = load(x + i), b = load(x + i + step);
          store(x + i, a + b);
          store(x + i + step, a - b);
        }
    return;
  }
  for (; step < n; step *= 2)
    for (int64_t base = 0; base < n; base += 2 * step)
      for (int64_t i = base; i < base + step; ++i) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats g = load(gate + i), e = exponential(-magnitude(g));
    store(out + i, choose(all(0.0f), g, g * e, g) / (1.0f + e) * load(up + i));
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t n) {
  const int64_t half = n / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const Floats a = load(x + i), b = load(x + i + half), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + i + half, b * c + a * s);
  }
}

#if defined(__aarch64__)
using Half = __fp16;  // _Float16 is C++ only since GCC 13 there
#else
using Half = _Float16;
#endif
inline float fp16(uint16_t x) {
  Half y;
  __builtin_memcpy(&y, &x, 2);
  return static_cast<float>(y);
}

#if !defined(BERTH_OWN_MATMUL)
#if !defined(BERTH_OWN_TILE)
// One tile: up to kRows rows by one panel, unit by unit.  sums[r][c] are float, in the order of the units:
//   rows with one scale:   sums = fma(dots, weight scale, sums);  at the end times the row's scale
//   one scale a unit:      sums = fma(dots, row scale * weight scale, sums)
//   and with 4 bits:       sums = fma(weighted sum of the row's values, minimum, sums) after that
inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  const uint16_t* scales = m.scales + panel * m.panel_scales();
  const int64_t units = a.units();
  alignas(64) int8_t nibbles[kMostUnit * kPanel];
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < kPanel; ++c) sums[r][c] = 0.0f;
  for (int64_t u = 0; u < units; ++u) {
    const int64_t start = u * a.unit, group = start / m.group;
    const int64_t depth = a.depth - start < a.unit ? a.depth - start : a.unit;
    const int8_t* w = weights + start * kPanel;
    if (m.bits == 4) {
      w = nibbles;
      for (int64_t k = 0; k < depth; k += 8)
        for (int i = 0; i < 64; ++i) {
          const auto both = static_cast<uint8_t>(weights[(start + k) * kPanel / 2 + i]);
          nibbles[k * kPanel + i] = static_cast<int8_t>(both & 15);
          nibbles[k * kPanel + 64 + i] = static_cast<int8_t>(both >> 4);
        }
    }
    int32_t biases[kRows];
    for (int r = 0; r < rows; ++r) biases[r] = a.biases[(row + r) * units + u];
    alignas(64) int32_t dots[kRows * kPanel];
    dot(w, depth, {a.values + row * a.depth + start, a.magnitudes + row * a.depth + start, biases, a.depth}, rows, nullptr, dots);
    for (int r = 0; r < rows; ++r) {
      const float scale = a.row_scale ? 1.0f : a.scales[(row + r) * units + u];
      for (int c = 0; c < kPanel; ++c) {
        const auto product = static_cast<float>(dots[r * kPanel + c]);
        if (m.bits == 8) {
          sums[r][c] = fused(product, scale * bf16(scales[group * kPanel + c]), sums[r][c]);
        } else {
          sums[r][c] = fused(product, scale * fp16(scales[2 * group * kPanel + c]), sums[r][c]);
          sums[r][c] = fused(a.weighted_sums[(row + r) * units + u], fp16(scales[(2 * group + 1) * kPanel + c]), sums[r][c]);
        }
      }
    }
  }
  if (a.row_scale)
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < kPanel; ++c) sums[r][c] *= a.scales[row + r];
}
#endif

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  for (int64_t panel = first; panel < last; ++panel)
    for (int64_t row = 0; row < rows; row += kRows) {
      const int n = static_cast<int>(rows - row < kRows ? rows - row : kRows);
      alignas(64) float sums[kRows][kPanel];
      tile(m, panel, a, row, n, sums);
      for (int r = 0; r < n; ++r) {
        float* to = out + (row + r) * stride + (panel - first) * kPanel;
        for (int c = 0; c < kPanel; c += kLanes) store(to + c, add ? load(to + c) + load(sums[r] + c) : load(sums[r] + c));
      }
    }
}
#endif

// Attention of a chunk, for every row: scores from integer dots of the quantized query and keys; p = exp(score - maximum); the values'
// scales are folded into p, which is quantized to 7 bits with one scale a block of 16 tokens, and integer dots with the values follow.
// A row's result depends on its own query and position alone: tokens after it get p = 0, blocks after it add exact zeros.
struct Chunk {
  explicit Chunk(const AttentionChunk& chunk) : c(chunk) {}  // leaves p unset: it is large, and written before it is read

  const AttentionChunk& c;
  alignas(64) float p[kAttentionRows][kChunkBlocks * kPanel];  // scores, then exp(score - maximum), then times the value's scale

  const int8_t* block(int64_t b) const { return c.cache + static_cast<int64_t>(c.table[b]) * c.block_stride; }

  // What to ask for while block b's keys (values) are in work: blocks lie anywhere, so the processor cannot guess.
  const int8_t* after_keys(int64_t b) const {
    b += kBlocksAhead;
    return b < c.blocks ? block(b) : block(b - c.blocks < c.blocks ? b - c.blocks : 0) + kPanel * c.head_dim;
  }
  const int8_t* after_values(int64_t b) const {
    b += kBlocksAhead;
    return b < c.blocks ? block(b) + kPanel * c.head_dim : b < c.blocks + c.blocks_after ? block(b) : nullptr;
  }

  void score(int64_t b) {
    const int8_t* ahead = after_keys(b);
    const int8_t* keys = block(b);
    const float* key_scales = reinterpret_cast<const float*>(keys + 2 * kPanel * c.head_dim);
    const Floats low = load(key_scales), high = load(key_scales + kLanes);
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int32_t dots[kRows * kPanel];
      dot(keys, c.head_dim, {c.values + row * c.head_dim, c.magnitudes + row * c.head_dim, c.biases + row, c.head_dim}, n,
          row == 0 ? ahead : nullptr, dots);
      for (int r = 0; r < n; ++r) {
        float* to = p[row + r] + b * kPanel;
        store(to, to_float(dots + r * kPanel) * (c.scales[row + r] * low));
        store(to + kLanes, to_float(dots + r * kPanel + kLanes) * (c.scales[row + r] * high));
        const int64_t seen = c.ages[row + r] - (c.position + b * kPanel) + 1;  // tokens of this block that the row sees
        for (int64_t t = seen < 0 ? 0 : seen; t < kPanel; ++t) to[t] = kNothing;
      }
    }
  }

  void soften(int64_t row) {
    Floats most = all(kNothing), even = all(0.0f), odd = even;
    for (int64_t i = 0; i < c.blocks * kPanel; i += kLanes) most = larger(load(p[row] + i), most);
    const float maximum = largest_of(most);
    c.maximum[row] = maximum;
    const auto soft = [&](float* x) {
      const Floats s = load(x), e = choose(s, all(kNothing), exponential(s - maximum), all(0.0f));
      store(x, e);
      return e;
    };
    for (int64_t i = 0; i < c.blocks * kPanel; i += 2 * kLanes) {
      even += soft(p[row] + i);
      odd += soft(p[row] + i + kLanes);
    }
    c.sum[row] = sum_of(even + odd);
    for (int64_t i = 0; i < c.head_dim; i += kLanes) store(c.out + row * c.head_dim + i, all(0.0f));
  }

  void blend(int64_t b) {
    const int8_t* ahead = after_values(b);
    const int8_t* values = block(b) + kPanel * c.head_dim;
    const float* value_scales = reinterpret_cast<const float*>(values + kPanel * c.head_dim) + kPanel;
    const Floats low = load(value_scales), high = load(value_scales + kLanes);
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int8_t weights[kRows * kPanel];
      float scale[kRows];
      for (int r = 0; r < n; ++r) {
        // a slot that no token has filled has p = 0, and whatever scale was there before
        const Floats a = load(p[row + r] + b * kPanel), z = load(p[row + r] + b * kPanel + kLanes), none = all(0.0f);
        const Floats first = choose(a, none, a * low, none), second = choose(z, none, z * high, none);
        const float top = largest_of(larger(first, second));
        const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
        scale[r] = top / 127.0f;
        store_rounded(weights + r * kPanel, first * inverse);
        store_rounded(weights + r * kPanel + kLanes, second * inverse);
      }
      for (int64_t i = 0; i < c.head_dim; i += kPanel) {
        alignas(64) int32_t dots[kRows * kPanel];
        dot_positive(values + i * kPanel, kPanel, weights, kPanel, n, row == 0 && ahead != nullptr ? ahead + i * kPanel : nullptr, dots);
        for (int r = 0; r < n; ++r) {
          float* to = c.out + (row + r) * c.head_dim + i;
          store(to, load(to) + small_to_float(dots + r * kPanel) * scale[r]);
          store(to + kLanes, load(to + kLanes) + small_to_float(dots + r * kPanel + kLanes) * scale[r]);
        }
      }
    }
  }
};

void attend(const AttentionChunk& c) {
  Chunk chunk(c);
  for (int64_t b = 0; b < c.blocks; ++b) chunk.score(b);
  for (int64_t row = 0; row < c.rows; ++row)
    if (c.ages[row] >= c.position) {
      chunk.soften(row);
    } else {  // sees nothing of this chunk
      c.maximum[row] = kNothing;
      c.sum[row] = 0.0f;
      for (int64_t i = 0; i < c.head_dim; ++i) c.out[row * c.head_dim + i] = 0.0f;
      for (int64_t i = 0; i < c.blocks * kPanel; ++i) chunk.p[row][i] = 0.0f;
    }
  for (int64_t b = 0; b < c.blocks; ++b) chunk.blend(b);
}

void merge(float* maximum, float* sum, float* out, float later_maximum, float later_sum, const float* later, int64_t n) {
  if (!(later_sum > 0.0f)) return;  // the row sees nothing of that chunk
  const float top = larger(*maximum, later_maximum);
  const float keep = exponential(*maximum - top), take = exponential(later_maximum - top);
  *maximum = top;
  *sum = *sum * keep + later_sum * take;
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, load(out + i) * keep + load(later + i) * take);
}

}  // namespace
}  // namespace berth

#define BERTH_ISA_TABLE(NAME) \
  {NAME, kRows, dot, dot_positive, matmul, quantize, inverse_rms, hadamard, swiglu, rotate, quantize_head, attend, merge}
