// What do all Arm sets share?  Rounding, the scales of a panel, and turning integer sums into floats; plain NEON (Armv8-A).
//
// Included by each set's unit after kRows is defined, before body.h; in an anonymous namespace for the reason that body.h gives.
#pragma once
#include <arm_neon.h>

#include "isa.h"

namespace berth {
namespace {

// Sums live in registers across these functions: the compiler must not make calls of them.
#define BERTH_INLINE __attribute__((always_inline)) inline
// Loops that benchmarks/arm_static.py looks up by the name of their function.
#define BERTH_LOOP __attribute__((noinline))

// An integer sum that starts from these bits is, read as a float, 1.5 * 2^23 plus the sum, exactly, as long as that is below 2^22: a
// subtraction then converts it, on any of a core's vector pipes.  scvtf has one or two, and half their rate (Neoverse N1, V1 and V2).
constexpr int32_t kSumBits = 0x4B400000;
constexpr float kSumFloat = 12582912.0f;
constexpr int64_t kShortUnit = 256;  // 256 * 127 * 127 < 2^22

// round(x[i]) to int8, ties to even: as in body.h, which picks the low byte of each lane one by one.
typedef float EightFloats __attribute__((vector_size(32)));  // body.h's Floats
BERTH_INLINE int16x8_t rounded_words(EightFloats x) {
  float32x4_t half[2];
  __builtin_memcpy(half, &x, sizeof x);
  const float32x4_t shift = vdupq_n_f32(kSumFloat);
  return vuzp1q_s16(vreinterpretq_s16_f32(vaddq_f32(half[0], shift)), vreinterpretq_s16_f32(vaddq_f32(half[1], shift)));
}
inline void store_rounded(int8_t* to, EightFloats x) { vst1_s8(to, vmovn_s16(rounded_words(x))); }
inline void store_rounded4(int8_t* to, EightFloats x, EightFloats y, EightFloats z, EightFloats w) {
  vst1q_s8(to, vuzp1q_s8(vreinterpretq_s8_s16(rounded_words(x)), vreinterpretq_s8_s16(rounded_words(y))));
  vst1q_s8(to + 16, vuzp1q_s8(vreinterpretq_s8_s16(rounded_words(z)), vreinterpretq_s8_s16(rounded_words(w))));
}

inline void store_planes(int8_t* high, int8_t* low, EightFloats x) {
  const int16x8_t q = rounded_words(x);  // below 2^15
  vst1_s8(high, vmovn_s16(vshrq_n_s16(q, 7)));
  vst1_s8(low, vmovn_s16(vandq_s16(q, vdupq_n_s16(127))));
}

inline EightFloats joined(float32x4_t low, float32x4_t high) {
  const float32x4_t both[2] = {low, high};
  EightFloats x;
  __builtin_memcpy(&x, both, sizeof x);
  return x;
}
// body.h's vectors are of 256 bits; GCC does most with them by halves, but compares and converts them lane by lane.
inline EightFloats choose(EightFloats x, EightFloats y, EightFloats u, EightFloats v) {
  float32x4_t a[2], b[2], c[2], d[2];
  __builtin_memcpy(a, &x, sizeof a), __builtin_memcpy(b, &y, sizeof b), __builtin_memcpy(c, &u, sizeof c), __builtin_memcpy(d, &v, sizeof d);
  return joined(vbslq_f32(vcgtq_f32(a[0], b[0]), c[0], d[0]), vbslq_f32(vcgtq_f32(a[1], b[1]), c[1], d[1]));
}
inline EightFloats to_float(const int32_t* p) { return joined(vcvtq_f32_s32(vld1q_s32(p)), vcvtq_f32_s32(vld1q_s32(p + 4))); }
inline EightFloats larger(EightFloats a, EightFloats b) { return choose(a, b, a, b); }
inline EightFloats fused(EightFloats a, EightFloats b, EightFloats c) {
  float32x4_t x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof x), __builtin_memcpy(y, &b, sizeof y), __builtin_memcpy(z, &c, sizeof z);
  return joined(vfmaq_f32(z[0], x[0], y[0]), vfmaq_f32(z[1], x[1], y[1]));
}
// body.h's, whose shuffles GCC does lane by lane too: the same operations on the lanes that count.
inline float sum_of(EightFloats x) {
  float32x4_t half[2];
  __builtin_memcpy(half, &x, sizeof half);
  const float32x4_t four = vaddq_f32(half[0], half[1]), two = vaddq_f32(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(two, 0) + vgetq_lane_f32(two, 1);
}
inline float largest_of(EightFloats x) {
  float32x4_t half[2];
  __builtin_memcpy(half, &x, sizeof half);
  const float32x4_t four = vbslq_f32(vcgtq_f32(half[0], half[1]), half[0], half[1]), turned = vextq_f32(four, four, 2);
  const float32x4_t two = vbslq_f32(vcgtq_f32(four, turned), four, turned);
  return vgetq_lane_f32(two, 0) > vgetq_lane_f32(two, 1) ? vgetq_lane_f32(two, 0) : vgetq_lane_f32(two, 1);
}

inline int8x16_t bytes_at(const int8_t* p) { return vld1q_s8(p); }
inline int8x16_t low_nibbles(int8x16_t x) { return vandq_s8(x, vdupq_n_s8(15)); }
inline int8x16_t high_nibbles(int8x16_t x) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4)); }

// 4 bytes of p, four times
inline int8x16_t broadcast4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(x));
}

// What a loop asks for while it computes: nothing; a line at `ahead` for each line that it reads (attention, whose blocks lie anywhere);
// or one line in four a page ahead, which brings the page's translation and starts the processor's own prefetcher in it: weights are
// read in order, and asking for each line would take a fifth of the load pipes.
enum class Ask { nothing, each_line, next_page };
constexpr int64_t kNextPage = 4096;

template <Ask ask>
BERTH_INLINE void ask_for(const int8_t* w, const int8_t* ahead, int64_t offset, int line) {
  if constexpr (ask == Ask::each_line) __builtin_prefetch(ahead + offset + line * 64);
  if constexpr (ask == Ask::next_page)
    if (line == 0) __builtin_prefetch(w + offset + kNextPage);
}

// Scales of 16 channels of a group of weights, and their minima where there are any, as floats.
struct PanelScales {
  float32x4_t scale[4], minimum[4];
};
BERTH_INLINE PanelScales scales_of(const Matrix& m, int64_t panel, int64_t group) {
  PanelScales s;
  const uint16_t* p = m.scales + panel * m.panel_scales() + group * kPanel * (m.minima ? 2 : 1);
  for (int j = 0; j < 4; ++j)
    if (m.bits == 8) {
      s.scale[j] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * j), 16));
      s.minimum[j] = vdupq_n_f32(0.0f);
    } else {
      s.scale[j] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * j)));
      s.minimum[j] = m.minima ? vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + kPanel + 4 * j))) : vmulq_n_f32(s.scale[j], -8.0f);
    }
  return s;
}

inline int64_t unit_depth(const Activations& a, int64_t unit) {
  const int64_t left = a.depth - unit * a.unit;
  return left < a.unit ? left : a.unit;
}
inline bool sums_fit_floats(const Activations& a) { return a.unit <= kShortUnit; }
BERTH_INLINE int32x4_t first_sum(bool fits) { return vdupq_n_s32(fits ? kSumBits : 0); }
BERTH_INLINE float32x4_t float_of(int32x4_t sum, bool fits) {
  return fits ? vsubq_f32(vreinterpretq_f32_s32(sum), vdupq_n_f32(kSumFloat)) : vcvtq_f32_s32(sum);
}

// Adds one unit's integer sums of a row (begun with first_sum) to its float sums, in the order of body.h's tile.
BERTH_INLINE void settle(const Matrix& m, const Activations& a, const PanelScales& s, int64_t row, int64_t unit, bool fits,
                   const int32x4_t (&dots)[4], float* sums) {
  const float scale = a.row_scale ? 1.0f : a.scales[row * a.units() + unit];
  float32x4_t x[4];
  for (int j = 0; j < 4; ++j)
    x[j] = vfmaq_f32(vld1q_f32(sums + 4 * j), float_of(dots[j], fits), a.row_scale ? s.scale[j] : vmulq_n_f32(s.scale[j], scale));
  if (m.bits == 4)
    for (int j = 0; j < 4; ++j) x[j] = vfmaq_n_f32(x[j], s.minimum[j], a.weighted_sums[row * a.units() + unit]);
  for (int j = 0; j < 4; ++j) vst1q_f32(sums + 4 * j, x[j]);
}

BERTH_INLINE void clear_sums(int rows, float (*sums)[kPanel]) {
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < 4; ++j) vst1q_f32(sums[r] + 4 * j, vdupq_n_f32(0.0f));
}

BERTH_INLINE void scale_rows(const Activations& a, int64_t row, int rows, float (*sums)[kPanel]) {
  if (!a.row_scale) return;
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < 4; ++j) vst1q_f32(sums[r] + 4 * j, vmulq_n_f32(vld1q_f32(sums[r] + 4 * j), a.scales[row + r]));
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_ROUNDING
#define BERTH_OWN_PLANES
#define BERTH_OWN_LANES
