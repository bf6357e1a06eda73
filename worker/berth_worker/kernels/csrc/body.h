// The arithmetic of every instruction set, written once.  Included by scalar.cpp and by each set's unit, after kRows, `dot` and
// `dot_positive` are defined there; a unit may bring its own rounding, `tile` or `matmul` too, and says which by BERTH_OWN_*; one whose
// `tile` reads magnitudes, biases or eased values says that, too.
//
// Vectors are GCC's and clang's own (vector_size): 8 floats, which the compiler maps to whatever the set has, or 16 where a unit says so
// by BERTH_LANES.  Every operation is IEEE's on each lane and sums run in a fixed order, 16 partial sums of which the second 8 are added to
// the first, so all sets give the same bits: compile with -ffp-contract=off, never -ffast-math.
// Everything is in an anonymous namespace and uses no standard templates: a function shared between units could be linked in the version
// of another unit's instruction set.
#include "isa.h"

namespace berth {
namespace {

#if !defined(BERTH_LANES)
#define BERTH_LANES 8
#endif
constexpr int kLanes = BERTH_LANES;
constexpr int kParts = kPanel / kLanes;  // vectors that hold 16 floats
typedef float Floats __attribute__((vector_size(4 * BERTH_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * BERTH_LANES)));
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x), ties to even, in the low bits for |x| < 2^22
constexpr int32_t kRoundBits = 0x4B400000;
#if BERTH_LANES == 16
#define BERTH_UNROLL _Pragma("GCC unroll 16")  // where there are registers enough for a whole row of attention
#else
#define BERTH_UNROLL
#endif
constexpr int kMostUnit = 128;     // the largest unit of activations for matrices of 4 bits
constexpr int kMostVectors = BERTH_LANES == 16 ? 16 : 8;  // that Hadamard's transform keeps in registers
constexpr int kGainedAtOnce = 64;  // the largest unit of activations whose rows are multiplied by a gain

inline Floats load(const float* p) { Floats x; __builtin_memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof x); }
inline Floats all(float x) {
#if BERTH_LANES == 16
  return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#else
  return Floats{x, x, x, x, x, x, x, x};
#endif
}
#if !defined(BERTH_OWN_LANES)
// u where x > y, else v
inline Floats choose(Floats x, Floats y, Floats u, Floats v) { return x > y ? u : v; }
inline Floats to_float(const int32_t* p) { Ints x; __builtin_memcpy(&x, p, sizeof x); return __builtin_convertvector(x, Floats); }
// a * b + c on each lane, rounded once
inline Floats fused(Floats a, Floats b, Floats c) {
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
inline Floats larger(Floats a, Floats b) { return choose(a, b, a, b); }
#endif
#if BERTH_LANES != 16
// x in the first n lanes, `otherwise` in the others
inline Floats first_lanes(int64_t n, Floats x, float otherwise) {
  const int32_t count = n < 0 ? 0 : static_cast<int32_t>(n < kLanes ? n : kLanes);
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7}, counts = {count, count, count, count, count, count, count, count};
  return lane < counts ? x : all(otherwise);
}
#endif
inline float larger(float a, float b) { return a > b ? a : b; }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7FFFFFFF); }
inline float bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

#if !defined(BERTH_OWN_LANES)
// Lane i plus lane i + 4, then 2, then 1.
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
// The sum of 16 partial sums.
inline float sum_of_parts(const Floats (&x)[kParts]) { return sum_of(kParts == 1 ? x[0] : x[0] + x[kParts - 1]); }

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
#if !defined(BERTH_OWN_PLANES)
// round(x[i]), 0 to 127 * 128, as 128 * high[i] + low[i]
inline void store_planes(int8_t* high, int8_t* low, Floats x) {
  const Ints bits = (Ints)(x + kRound) - kRoundBits;
  for (int i = 0; i < kLanes; ++i) {
    high[i] = static_cast<int8_t>(bits[i] >> 7);
    low[i] = static_cast<int8_t>(bits[i] & 127);
  }
}
#endif
#if !defined(BERTH_OWN_FOUR_PLANES)
inline void store_planes4(int8_t* high, int8_t* low, Floats x, Floats y, Floats z, Floats w) {
  store_planes(high, low, x);
  store_planes(high + kLanes, low + kLanes, y);
  store_planes(high + 2 * kLanes, low + 2 * kLanes, z);
  store_planes(high + 3 * kLanes, low + 3 * kLanes, w);
}
#endif

// exp(x) to 2 ulp for x <= 0: 2^n exp(r), r in [-ln2/2, ln2/2] (reduced in two steps, as Cephes does), by the polynomial of degree 5 that
// begins with 1 + r and has the least relative error there, 1.1e-7 (Lawson's iteration); below -87, exp(-87).
inline Floats exponential(Floats x) {
  x = larger(x, all(-87.0f));
  const Floats shifted = fused(x, all(1.44269504088896341f), all(kRound));
  const Floats whole = shifted - kRound;
  const Floats r = fused(whole, all(2.12194440e-4f), fused(whole, all(-0.693359375f), x));
  Floats p = fused(r, all(0.008312501f), all(0.04189033f));
  p = fused(p, r, all(0.16667116f));
  p = fused(p, r, all(0.4999923f));
  p = fused(p, r * r, r) + 1.0f;
  return p * (Floats)(((Ints)shifted - (kRoundBits - 127)) << 23);
}

// 2^f for f in [-1/2, 1/2]: the polynomial of degree 4 that begins with 1 and has the least relative error there, 2.8e-6.
inline Floats power_of_fraction(Floats f) {
  Floats p = fused(f, all(0.009582816f), all(0.05590682f));
  p = fused(p, f, all(0.24024102f));
  p = fused(p, f, all(0.6931242f));
  return fused(p, f, all(1.0f));
}
// 2^x for x <= 0: 2^n 2^f.  Below -100 it is some number up to 2^-100, and of minus infinity anything: neither changes a sum that has a 1.
#if defined(BERTH_OWN_POWER)
inline Floats power_of_two(Floats x) {
  const Floats f = fraction(x);
  return scaled(power_of_fraction(f), x - f);
}
#else
inline Floats power_of_two(Floats x) {
  x = larger(x, all(-100.0f));
  const Floats shifted = x + kRound, f = x - (shifted - kRound);
  return (Floats)((Ints)power_of_fraction(f) + ((Ints)shifted << 23));  // kRound's own bits are shifted out
}
#endif

inline float largest_magnitude(const float* x, int64_t n) {
  Floats most = all(0.0f);
  int64_t i = 0;
  if (n >= 4 * kLanes) {  // several at a time: each depends on the one before
    Floats other[4] = {most, most, most, most};
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) other[j] = larger(magnitude(load(x + i + j * kLanes)), other[j]);
    most = larger(larger(other[0], other[1]), larger(other[2], other[3]));
  }
  for (; i + kLanes <= n; i += kLanes) most = larger(magnitude(load(x + i)), most);
  float rest = 0.0f;
  for (; i < n; ++i) rest = larger(__builtin_fabsf(x[i]), rest);
  return larger(largest_of(most), rest);
}

float greatest(const float* x, int64_t n) {
  Floats most[4] = {all(-__builtin_inff()), all(-__builtin_inff()), all(-__builtin_inff()), all(-__builtin_inff())};
  Ints unordered = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {  // several at a time: each depends on the one before
      const Floats v = load(x + i + j * kLanes);
      unordered |= v != v;
      most[j] = larger(v, most[j]);
    }
  float rest = largest_of(larger(larger(most[0], most[1]), larger(most[2], most[3])));
  bool some = false;
  for (; i < n; ++i) some |= x[i] != x[i], rest = larger(x[i], rest);
  for (int lane = 0; lane < kLanes; ++lane) some |= unordered[lane] != 0;
  return some ? __builtin_nanf("") : rest;
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

#if !defined(BERTH_OWN_LANES) || BERTH_LANES != 16
inline int32_t sum_of(const int8_t* values, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return sum;
}
#endif
inline int32_t bias_of([[maybe_unused]] const int8_t* values, [[maybe_unused]] int64_t n) {
#if defined(BERTH_READS_BIASES)
  return -128 * sum_of(values, n);
#else
  return 0;
#endif
}

float inverse_rms(const float* row, int64_t n, float epsilon) {
  Floats sums[kParts] = {};
  int64_t i = 0;
  for (; i + kPanel <= n; i += kPanel)
    for (int part = 0; part < kParts; ++part) {
      const Floats x = load(row + i + part * kLanes);
      sums[part] += x * x;
    }
  float rest = 0.0f;
  for (; i < n; ++i) rest += row[i] * row[i];
  return 1.0f / __builtin_sqrtf((sum_of_parts(sums) + rest) / static_cast<float>(n) + epsilon);
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
#if defined(BERTH_OWN_EASE)
    ease(values, a.depth, a.unit, a.eased + r * a.depth, a.heavy + r * a.units(), biases);
#else
    for (int64_t start = 0; start < a.depth; start += a.unit)
      *biases++ = bias_of(values + start, a.depth - start < a.unit ? a.depth - start : a.unit);
#endif
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
    magnitudes_of(values, a.depth, a.magnitudes + r * a.depth);
  }
}

float quantize_head(const float* x, int64_t n, int8_t* values, uint8_t* magnitudes, int32_t* bias) {
  const float top = largest_magnitude(x, n);
  round_row(x, n, top > 0.0f ? 127.0f / top : 0.0f, values);
  magnitudes_of(values, n, magnitudes);
  *bias = bias_of(values, n);
  return top / 127.0f;
}

// The stages of Hadamard's matrix that mix the lanes of a vector.
inline Floats hadamard_of_lanes(Floats v) {
#if BERTH_LANES == 16
  const Floats one = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
  const Floats four = {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1}, eight = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
  v = fused(v, one, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  v = fused(v, two, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = fused(v, four, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  return fused(v, eight, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
#else
  const Floats one = {1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1}, four = {1, 1, 1, 1, -1, -1, -1, -1};
  v = v * one + __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  v = v * two + __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  return v * four + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
}

// The first stages, for as many values as `Vectors` registers hold.
template <int Vectors>
inline void hadamard_of(float* x) {
  Floats v[Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Vectors; ++i) v[i] = hadamard_of_lanes(load(x + i * kLanes));
#pragma GCC unroll 4
  for (int step = 1; step < Vectors; step *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i)
      if ((i & step) == 0) {
        const Floats a = v[i], b = v[i + step];
        v[i] = a + b;
        v[i + step] = a - b;
      }
#pragma GCC unroll 16
  for (int i = 0; i < Vectors; ++i) store(x + i * kLanes, v[i]);
}

// In the order of the stages: pairs 1 apart, 2 apart, 4 apart and so on.
void hadamard(float* x, int64_t n) {
  int64_t step = 1;
  const auto first_stages = [&]<int Vectors>() {
    for (int64_t i = 0; i < n; i += Vectors * kLanes) hadamard_of<Vectors>(x + i);
    step = Vectors * kLanes;
  };
  if (n >= kMostVectors * kLanes)
    first_stages.template operator()<kMostVectors>();
  else if (n >= 4 * kLanes)
    first_stages.template operator()<4>();
  else if (n >= kLanes)
    first_stages.template operator()<1>();
  for (; step < n; step *= 2)
    for (int64_t base = 0; base < n; base += 2 * step)
      for (int64_t i = base; i < base + step; ++i) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
}

void swiglu(const float* both, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const float* gate = both + i / kPanel * 2 * kPanel + i % kPanel;
    const Floats g = load(gate), e = exponential(-magnitude(g));
    store(out + i, choose(all(0.0f), g, g * e, g) / (1.0f + e) * load(gate + kPanel));
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t n) {
  const int64_t half = n / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Floats a = load(x + i), b = load(x + i + half), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + i + half, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
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
  const int64_t units = a.units(), group_scales = kPanel * (m.minima ? 2 : 1);
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
    dot(w, depth, {a.values + row * a.depth + start, nullptr, biases, a.depth}, rows, nullptr, dots);
    for (int r = 0; r < rows; ++r) {
      const float scale = a.row_scale ? 1.0f : a.scales[(row + r) * units + u];
      for (int c = 0; c < kPanel; ++c) {
        const auto product = static_cast<float>(dots[r * kPanel + c]);
        if (m.bits == 8) {
          sums[r][c] = fused(product, scale * bf16(scales[group * group_scales + c]), sums[r][c]);
        } else {
          const uint16_t* own = scales + group * group_scales + c;
          const float minimum = m.minima ? fp16(own[kPanel]) : -8.0f * fp16(*own);
          sums[r][c] = fused(product, scale * fp16(*own), sums[r][c]);
          sums[r][c] = fused(a.weighted_sums[(row + r) * units + u], minimum, sums[r][c]);
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

#if !defined(BERTH_OWN_FINISH)
void finish() {}
#endif

}  // namespace
}  // namespace berth

#include "attend.h"

#define BERTH_ISA_TABLE(NAME) \
  {NAME, kRows, dot, dot_positive, matmul, quantize, inverse_rms, hadamard, swiglu, rotate, quantize_head, attend, merge, greatest, finish}
