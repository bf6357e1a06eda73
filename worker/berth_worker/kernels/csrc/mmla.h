// How does smmla multiply many rows by a panel?  It takes 2 rows x 8 of depth times 2 channels x 8 of depth, 32 multiply-adds, twice
// sdot's, and leaves [row 0: c, c'; row 1: c, c'].  Two granules of weights, one below the other in depth, become its operands by two
// shuffles, trn1 for channels 0 and 2, trn2 for 1 and 3 (they, unlike zip, stay within 128 bits of a longer vector); the more rows share them, the less they cost, so tiles are tall: up to 16 rows by as few as 4 channels.
//
// This is what surrounds the inner loop, for any width of vectors.  A call packs its rows once, in pairs, as smmla wants them; all its
// panels use them.  Sums stay in smmla's order, as integers and as floats, until a tile is done.
#pragma once
#include <stdlib.h>

#include "neon.h"

namespace berth {
namespace {

constexpr int kFewRows = 4;             // below, the shuffles cost what smmla saves
constexpr int kTallRows = 16;           // rows of a tile
constexpr int kPackedRows = 64;         // rows packed at once
constexpr int64_t kBlockDepth = 512;    // 8 KB of a panel and of 16 rows: what is read again, for the next channels, is in the L1 cache
constexpr int kPairFloats = 2 * kPanel;  // sums of a pair of rows: [even channels, odd ones][granule][2 rows][2 channels]

// Part of a unit, at most kBlockDepth of it, for a panel and a tile's rows.
struct Block {
  const int8_t* weights;
  const int8_t* values;  // [depth / 8, rounded up][pairs][2][8], padded with zeros
  int64_t depth;         // multiple of 4 (8 bits) or 8 (4 bits)
  bool first, last;      // of the unit
  bool fits;             // sums_fit_floats
  bool ask;              // whether this is the first to read the weights
  int32_t* partial;      // [pairs][kPairFloats] integer sums: read unless first, written unless last
  // What follows serves the last block of a unit: sums += float(integer sum) * row scale * weight scale, then row sum * minimum
  float* sums;                  // [pairs][kPairFloats]
  const float* weight_scales;   // [2][4 granules][2][2]
  const float* minima;          // the same, or null
  const float* row_scales;      // [pairs][2][2], or null
  const float* row_sums;        // the same; only with minima
};

// Rows of a tile, packed: units one after the other, each padded to a multiple of 8.
struct TallRows {
  int64_t row;
  int rows, pairs;
  int8_t* values;
  float *scales, *sums;  // [units][pairs][2][2]
};

// Each unit's own: the inner loop, and a tile of fewer than kFewRows rows by dot products.
inline void multiply(int bits, int pairs, const Block& b);
inline void few_rows(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float (*sums)[kPanel]);

class Scratch {
 public:
  ~Scratch() { free(memory_); }
  // 64-byte aligned; null if there is no memory.
  char* at_least(size_t bytes) {
    if (bytes > size_) {
      free(memory_);
      memory_ = static_cast<char*>(aligned_alloc(64, (bytes + 63) / 64 * 64));
      size_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

constexpr int64_t eights(int64_t n) { return (n + 7) / 8 * 8; }
inline int64_t packed_depth(const Activations& a) {
  const int64_t units = a.units();
  return (units - 1) * eights(a.unit) + eights(unit_depth(a, units - 1));
}
inline size_t packed_bytes(const Activations& a) {  // of one pair
  return static_cast<size_t>(2 * packed_depth(a)) + (a.row_scale ? 0 : static_cast<size_t>(a.units()) * 8 * sizeof(float));
}

inline void pack_rows(const Activations& a, const TallRows& t) {
  const int64_t units = a.units(), step = 16 * t.pairs;
  for (int p = 0; p < t.pairs; ++p) {
    const int64_t r0 = t.row + 2 * p, r1 = 2 * p + 1 < t.rows ? r0 + 1 : r0;  // a last row without a partner comes twice
    int8_t* to = t.values + 16 * p;
    for (int64_t u = 0; u < units; ++u) {
      const int8_t *x = a.values + r0 * a.depth + u * a.unit, *y = a.values + r1 * a.depth + u * a.unit;
      const int64_t depth = unit_depth(a, u);
      int64_t k = 0;
      for (; k + 16 <= depth; k += 16, to += 2 * step) {
        const int64x2_t low = vreinterpretq_s64_s8(bytes_at(x + k)), high = vreinterpretq_s64_s8(bytes_at(y + k));
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(low, high)));
        vst1q_s8(to + step, vreinterpretq_s8_s64(vzip2q_s64(low, high)));
      }
      for (; k < depth; k += 8, to += step) {
        int64_t both[2] = {0, 0};
        const size_t n = static_cast<size_t>(depth - k < 8 ? depth - k : 8);
        __builtin_memcpy(both, x + k, n);
        __builtin_memcpy(both + 1, y + k, n);
        __builtin_memcpy(to, both, sizeof both);
      }
      if (a.row_scale) continue;
      float *scales = t.scales + (u * t.pairs + p) * 4, *sums = t.sums + (u * t.pairs + p) * 4;
      scales[0] = scales[1] = a.scales[r0 * units + u], scales[2] = scales[3] = a.scales[r1 * units + u];
      sums[0] = sums[1] = a.weighted_sums[r0 * units + u], sums[2] = sums[3] = a.weighted_sums[r1 * units + u];
    }
  }
}

// 16 channels' floats, in the order of smmla's sums.
inline void spread(const float32x4_t (&x)[4], float* to) {
  for (int g = 0; g < 4; ++g) {
    vst1q_f32(to + 4 * g, vuzp1q_f32(x[g], x[g]));
    vst1q_f32(to + kPanel + 4 * g, vuzp2q_f32(x[g], x[g]));
  }
}

inline void tall_tile(const Matrix& m, int64_t panel, const Activations& a, const TallRows& t, float* sums) {
  alignas(64) int32_t partial[kTallRows / 2 * kPairFloats];
  alignas(64) float scales[kPairFloats], minima[kPairFloats];
  for (int i = 0; i < t.pairs * kPairFloats; i += 4) vst1q_f32(sums + i, vdupq_n_f32(0.0f));
  const int64_t units = a.units();
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  Block b{};
  b.values = t.values, b.fits = sums_fit_floats(a), b.ask = t.row == 0, b.partial = partial, b.sums = sums;
  b.weight_scales = scales, b.minima = m.bits == 4 ? minima : nullptr;
  for (int64_t u = 0, group = -1; u < units; ++u) {
    const int64_t start = u * a.unit, depth = unit_depth(a, u);
    if (start / m.group != group) {
      group = start / m.group;
      const PanelScales s = scales_of(m, panel, group);
      spread(s.scale, scales);
      if (m.bits == 4) spread(s.minimum, minima);
    }
    if (!a.row_scale) b.row_scales = t.scales + u * t.pairs * 4, b.row_sums = t.sums + u * t.pairs * 4;
    for (int64_t k = 0; k < depth; k += b.depth) {
      b.depth = depth - k < kBlockDepth ? depth - k : kBlockDepth;
      b.first = k == 0, b.last = k + b.depth == depth;
      b.weights = weights + (start + k) * kPanel * m.bits / 8;
      multiply(m.bits, t.pairs, b);
      b.values += eights(b.depth) * 2 * t.pairs;
    }
  }
}

inline void store_row(float* to, const float* x, int64_t n, bool add) {
  for (int64_t i = 0; i < n; i += 4) vst1q_f32(to + i, add ? vaddq_f32(vld1q_f32(to + i), vld1q_f32(x + i)) : vld1q_f32(x + i));
}

// Sums of a pair of rows, in the order of channels.
inline void unspread(const float* sums, float (&rows)[2][kPanel]) {
  for (int g = 0; g < 4; ++g) {
    const float32x4_t even = vld1q_f32(sums + 4 * g), odd = vld1q_f32(sums + kPanel + 4 * g);
    vst1q_f32(rows[0] + 4 * g, vzip1q_f32(even, odd));
    vst1q_f32(rows[1] + 4 * g, vzip2q_f32(even, odd));
  }
}

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  static thread_local Scratch scratch;
  for (int64_t start = 0; start < rows; start += kPackedRows) {
    const int64_t end = start + kPackedRows < rows ? start + kPackedRows : rows;
    TallRows tall[kPackedRows / kTallRows];
    int count = 0;
    int64_t row = start;
    char* memory = end - start < kFewRows ? nullptr : scratch.at_least(packed_bytes(a) * (kPackedRows / 2));
    if (memory != nullptr)  // else all by dot products
      for (; end - row >= kFewRows; row += tall[count++].rows) {
        TallRows& t = tall[count];
        t.row = row, t.rows = static_cast<int>(end - row < kTallRows ? end - row : kTallRows), t.pairs = (t.rows + 1) / 2;
        t.values = reinterpret_cast<int8_t*>(memory);
        t.scales = reinterpret_cast<float*>(memory + 2 * packed_depth(a) * t.pairs);
        t.sums = t.scales + a.units() * t.pairs * 4;
        memory += packed_bytes(a) * static_cast<size_t>(t.pairs);
        pack_rows(a, t);
      }
    for (int64_t panel = first; panel < last; ++panel) {
      float* to = out + (panel - first) * kPanel;
      for (int i = 0; i < count; ++i) {
        const TallRows& t = tall[i];
        alignas(64) float sums[kTallRows / 2 * kPairFloats];
        alignas(64) float rows_of[2][kPanel];
        tall_tile(m, panel, a, t, sums);
        for (int r = 0; r < t.rows; r += 2) {
          const int n = t.rows - r < 2 ? 1 : 2;
          unspread(sums + r / 2 * kPairFloats, rows_of);
          scale_rows(a, t.row + r, n, rows_of);
          for (int j = 0; j < n; ++j) store_row(to + (t.row + r + j) * stride, rows_of[j], kPanel, add);
        }
      }
      for (int64_t r = row; r < end; r += kFewRows) {
        const int n = static_cast<int>(end - r < kFewRows ? end - r : kFewRows);
        alignas(64) float sums[kFewRows][kPanel];
        few_rows(m, panel, a, r, n, sums);
        for (int j = 0; j < n; ++j) store_row(to + (r + j) * stride, sums[j], kPanel, add);
      }
    }
  }
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_MATMUL
