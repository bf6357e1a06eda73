// The arithmetic of every instruction set, written once.  Included by scalar.cpp and by each set's unit, after `dot` is defined there.
//
// Everything is in an anonymous namespace and uses no standard templates: a function shared between units could be linked in the version
// of another unit's instruction set.  Loops are written so that a compiler vectorizes them without reordering floating point: sums run in
// 16 lanes.  Compile with -ffp-contract=off and never with -ffast-math.
#include "isa.h"

namespace berth {
namespace {

inline float as_float(uint32_t bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline uint32_t as_bits(float x) { uint32_t bits; __builtin_memcpy(&bits, &x, 4); return bits; }
inline float bf16(uint16_t x) { return as_float(static_cast<uint32_t>(x) << 16); }
inline float larger(float a, float b) { return a > b ? a : b; }

// Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves it in the low bits of the mantissa.
inline int32_t nearest(float x) { return static_cast<int32_t>(as_bits(x + 12582912.0f)) - 0x4B400000; }

// exp(x) to 2 ulp for x <= 0 (Cephes expf: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2]); below -87, exp(-87).
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const int32_t n = static_cast<int32_t>(as_bits(shifted)) - 0x4B400000;
  const float whole = shifted - 12582912.0f;
  const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  return p * as_float(static_cast<uint32_t>(n + 127) << 23);
}

inline float reduce_sum(const float* lanes) {
  float s[8];
  for (int i = 0; i < 8; ++i) s[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

inline float reduce_max(const float* lanes) {
  float m = lanes[0];
  for (int i = 1; i < 16; ++i) m = larger(m, lanes[i]);
  return m;
}

inline float largest_magnitude(const float* x, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = larger(__builtin_fabsf(x[i + j]), lanes[j]);
  for (; i < n; ++i) lanes[0] = larger(__builtin_fabsf(x[i]), lanes[0]);
  return reduce_max(lanes);
}

float inverse_rms(const float* row, int64_t n, float epsilon) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += row[i + j] * row[i + j];
  for (int j = 0; i + j < n; ++j) lanes[j] += row[i + j] * row[i + j];
  return 1.0f / __builtin_sqrtf(reduce_sum(lanes) / static_cast<float>(n) + epsilon);
}

void quantize(const float* row, float scale, const Activations& a, int64_t r) {
  int8_t* values = a.values + r * a.depth;
  uint8_t* magnitudes = a.magnitudes + r * a.depth;
  float* scales = a.scales + r * a.groups();
  for (int64_t start = 0; start < a.depth; start += a.group) {
    const int64_t n = a.depth - start < a.group ? a.depth - start : a.group;
    const float top = largest_magnitude(row + start, n);
    const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    *scales++ = top * scale / 127.0f;
    for (int64_t i = start; i < start + n; ++i) {
      const int32_t q = nearest(row[i] * inverse);
      values[i] = static_cast<int8_t>(q);
      magnitudes[i] = static_cast<uint8_t>(q < 0 ? -q : q);
    }
  }
}

float quantize_head(const float* x, int64_t n, int8_t* values) {
  const float top = largest_magnitude(x, n);
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<int8_t>(nearest(x[i] * inverse));
  return top / 127.0f;
}

void hadamard(float* x, int64_t n) {
  for (int64_t step = 1; step < n; step *= 2)
    for (int64_t base = 0; base < n; base += 2 * step)
      for (int64_t i = base; i < base + step; ++i) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i];
    const float e = exponential(g < 0.0f ? g : -g);  // exp(-|g|) <= 1
    out[i] = (g < 0.0f ? g * e : g) / (1.0f + e) * up[i];
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t n) {
  const int64_t half = n / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

// One tile: up to kRows rows by one panel, group by group.  sums[r][c] are float, in the order of the groups.
inline void tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (&sums)[kRows][kPanel]) {
  const int64_t groups = m.groups();
  const int8_t* weights = m.weights + panel * m.depth * kPanel;
  const uint16_t* scales = m.scales + panel * groups * kPanel;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < kPanel; ++c) sums[r][c] = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t start = g * m.group;
    const int64_t depth = m.depth - start < m.group ? m.depth - start : m.group;
    alignas(64) int32_t dots[kRows * kPanel];
    dot(weights + start * kPanel, depth, a.values + row * a.depth + start, a.magnitudes + row * a.depth + start, a.depth, rows, dots);
    for (int r = 0; r < rows; ++r) {
      const float scale = a.scales[(row + r) * groups + g];
      for (int c = 0; c < kPanel; ++c)
        sums[r][c] += static_cast<float>(dots[r * kPanel + c]) * (scale * bf16(scales[g * kPanel + c]));
    }
  }
}

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  for (int64_t panel = first; panel < last; ++panel)
    for (int64_t row = 0; row < rows; row += kRows) {
      const int n = static_cast<int>(rows - row < kRows ? rows - row : kRows);
      alignas(64) float sums[kRows][kPanel];
      tile(m, panel, a, row, n, sums);
      for (int r = 0; r < n; ++r) {
        float* to = out + (row + r) * stride + (panel - first) * kPanel;
        if (add)
          for (int c = 0; c < kPanel; ++c) to[c] += sums[r][c];
        else
          for (int c = 0; c < kPanel; ++c) to[c] = sums[r][c];
      }
    }
}

// Attention of a chunk, for every row: scores from integer dots of the quantized query and keys; p = exp(score - maximum); the values'
// scales are folded into p, which is quantized to 7 bits with one scale a block of 16 tokens, and integer dots with the values follow.
// A row's result depends on its own query and position alone: tokens after it get p = 0, blocks after it add exact zeros.
void attend(const AttentionChunk& c) {
  constexpr float kNothing = -__builtin_inff();
  alignas(64) static thread_local float scores[kAttentionRows][kChunkBlocks * kPanel];
  const int64_t d = c.head_dim;
  for (int64_t b = 0; b < c.blocks; ++b) {
    const int8_t* keys = c.cache + static_cast<int64_t>(c.table[b]) * c.block_stride;
    const float* key_scales = reinterpret_cast<const float*>(keys + 2 * kPanel * d);
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int32_t dots[kRows * kPanel];
      dot(keys, d, c.values + row * d, c.magnitudes + row * d, d, n, dots);
      for (int r = 0; r < n; ++r) {
        float* to = scores[row + r] + b * kPanel;
        const int64_t seen = c.ages[row + r] - (c.position + b * kPanel) + 1;  // tokens of this block that the row sees
        for (int t = 0; t < kPanel; ++t) to[t] = static_cast<float>(dots[r * kPanel + t]) * (c.scales[row + r] * key_scales[t]);
        for (int64_t t = seen < 0 ? 0 : seen; t < kPanel; ++t) to[t] = kNothing;
      }
    }
  }
  for (int64_t row = 0; row < c.rows; ++row) {
    float lanes[kPanel];
    for (int t = 0; t < kPanel; ++t) lanes[t] = kNothing;
    for (int64_t b = 0; b < c.blocks; ++b)
      for (int t = 0; t < kPanel; ++t) lanes[t] = larger(scores[row][b * kPanel + t], lanes[t]);
    const float maximum = reduce_max(lanes);
    c.maximum[row] = maximum;
    for (int64_t i = 0; i < d; ++i) c.out[row * d + i] = 0.0f;
    for (int t = 0; t < kPanel; ++t) lanes[t] = 0.0f;
    if (maximum > kNothing)
      for (int64_t b = 0; b < c.blocks; ++b)
        for (int t = 0; t < kPanel; ++t) {
          float& s = scores[row][b * kPanel + t];
          s = s > kNothing ? exponential(s - maximum) : 0.0f;
          lanes[t] += s;
        }
    c.sum[row] = reduce_sum(lanes);
  }
  for (int64_t b = 0; b < c.blocks; ++b) {
    const int8_t* values = c.cache + static_cast<int64_t>(c.table[b]) * c.block_stride + kPanel * d;
    const float* value_scales = reinterpret_cast<const float*>(values + kPanel * d) + kPanel;
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int8_t weights[kRows][kPanel];
      float scale[kRows];
      for (int r = 0; r < n; ++r) {
        const float* p = scores[row + r] + b * kPanel;
        const bool seen = c.maximum[row + r] > kNothing;
        float folded[kPanel], top = 0.0f;
        for (int t = 0; t < kPanel; ++t) folded[t] = seen && p[t] > 0.0f ? p[t] * value_scales[t] : 0.0f;
        for (int t = 0; t < kPanel; ++t) top = larger(folded[t], top);
        const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
        scale[r] = top / 127.0f;
        for (int t = 0; t < kPanel; ++t) weights[r][t] = static_cast<int8_t>(nearest(folded[t] * inverse));
      }
      for (int64_t i = 0; i < d; i += kPanel) {
        alignas(64) int32_t dots[kRows * kPanel];
        dot(values + i * kPanel, kPanel, weights[0], reinterpret_cast<const uint8_t*>(weights[0]), kPanel, n, dots);
        for (int r = 0; r < n; ++r)
          for (int k = 0; k < kPanel; ++k) c.out[(row + r) * d + i + k] += static_cast<float>(dots[r * kPanel + k]) * scale[r];
      }
    }
  }
}

void merge(float* maximum, float* sum, float* out, float later_maximum, float later_sum, const float* later, int64_t n) {
  if (!(later_sum > 0.0f)) return;  // the row sees nothing of that chunk
  const float top = larger(*maximum, later_maximum);
  const float keep = exponential(*maximum - top), take = exponential(later_maximum - top);
  *maximum = top;
  *sum = *sum * keep + later_sum * take;
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] * keep + later[i] * take;
}

}  // namespace
}  // namespace berth

#define BERTH_ISA_TABLE(NAME) \
  {NAME, dot, matmul, quantize, inverse_rms, hadamard, swiglu, rotate, quantize_head, attend, merge}
