// What does one instruction set offer?  A table of functions over plain arrays; every set gives the same bits.
//
// Integer dot products are exact.  Floating point is compiled without contraction or reassociation, and fused multiply-adds are written
// out, so the order of operations is that of the source everywhere (body.h; sets with a loop of their own keep its order).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace berth {

constexpr int kPanel = 16;    // output channels of a panel of weights; also tokens of a KV block
constexpr int kMostRows = 16;  // rows of activations that a set's dot product takes at once, at most

// A matrix of weights [channels][depth], packed for one sequential read, in panels of 16 channels:
//   8 bits: weights [channels / 16][depth / 4][16][4] int8 in [-127, 127];  scales [channels / 16][groups][16] bf16
//           weight = scale * value
//   4 bits: weights [channels / 16][depth / 8][16][4] bytes: the low nibbles are depth 8i..8i+3, the high ones 8i+4..8i+7, 0..15;
//           scales [channels / 16][groups][2][16] fp16: scales, then minima;  weight = scale * nibble + minimum
//           or without minima [channels / 16][groups][16];  weight = scale * nibble - 8 scale
// A granule of 16 bytes is 4 channels x 4 of depth.  Granules of 128 bits serve AVX2, VNNI (64-byte lines: 16 channels), AMX (16 lines are
// a tile), NEON dotprod (4 channels an instruction), i8mm (after zip1/zip2 of two granules) and SVE of any length.
struct Matrix {
  int bits;
  bool minima;  // only with 4 bits
  const int8_t* weights;
  const uint16_t* scales;
  int64_t channels;  // padded with zeros to a multiple of 16
  int64_t depth;     // padded with zeros to a multiple of 4 (8 bits) or 8 (4 bits)
  int64_t group;     // depth that shares a scale: a multiple of the activations' unit; the last group may be shorter
  int64_t groups() const { return (depth + group - 1) / group; }
  int64_t panel_bytes() const { return depth * kPanel * bits / 8; }
  int64_t panel_scales() const { return groups() * kPanel * (minima ? 2 : 1); }
};

// How far ahead of reading them a product of few rows asks for its weights, bytes.  Matrices of small models lie in the last level in part,
// which answers the faster the more it is asked for (135M, batch 1: 8 to 15 % over 4 KiB); what comes from memory alone is 2 to 5 % slower
// with more than 4 KiB (1.1B, whose depth is 2,048).  Half as far for 4 bits, as there are half as many of them.
inline int64_t bytes_ahead(int64_t depth, int bits) { return depth >= 2048 ? 4096 : bits == 4 ? 8192 : 16384; }

// Rows of activations, quantized to int8.  `unit` values along the depth are summed as integers (the last unit may be shorter).  Rotated
// models have one scale a row and units of at most 256, others one scale a unit.
struct Activations {
  int8_t* values;        // [rows][depth] in [-127, 127]; with room for a multiple of 16 rows, which a set may read whole
  uint8_t* magnitudes;   // [rows][depth] absolute values; written only by sets that use them, without row_scale
  int8_t* eased;         // [rows][depth] values, but those of heavy fours halved; written only by sets that use them, with row_scale
  uint64_t* heavy;       // [rows][units] bit i: the unit's values 4i..4i+3 are heavy (avx2.cpp); as eased
  int32_t* biases;       // [rows][units] -128 times the sum of the unit's values, which a set adds that reads weights as weight + 128; others: 0
  float* scales;         // [rows][row_scale ? 1 : units]
  float* weighted_sums;  // [rows][units] scale times the sum of the unit's values; only without row_scale
  int64_t depth;
  int64_t unit;
  bool row_scale;
  int64_t units() const { return (depth + unit - 1) / unit; }
};

// Consecutive rows of int8 for a dot product: as in Activations, but one bias a row, for the whole depth.
struct DotRows {
  const int8_t* values;       // [rows][stride]
  const uint8_t* magnitudes;  // [rows][stride]
  const int32_t* biases;      // [rows]
  int64_t stride;
};

struct Isa {
  const char* name;
  int dot_rows;  // rows that `dot` and `dot_positive` take at once, at most
  // out[r][c] = sum over k of values[r][k] * panel[c][k], r < rows <= dot_rows, c < 16; depth a multiple of 4, panel as in an 8-bit Matrix.
  // `ahead` is where as many bytes lie that will be read next (it may be any address, and is only a hint), or null.
  void (*dot)(const int8_t* panel, int64_t depth, const DotRows& rows_of, int rows, const int8_t* ahead, int32_t* out);
  // The same for values that are not negative; biases and magnitudes are not read.
  void (*dot_positive)(const int8_t* panel, int64_t depth, const int8_t* values, int64_t stride, int rows, const int8_t* ahead, int32_t* out);
  // out[r][(panel - first) * 16 + c] = (or +=) the product of row r with channel c of panels first <= panel < last; stride in floats
  void (*matmul)(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add);
  // row[0..depth) times `scale`, and times gain[0..depth) if that is not null, quantized into row r of a
  void (*quantize)(const float* row, float scale, const float* gain, const Activations& a, int64_t r);
  // 1 / root mean square of row: 1 / sqrt(sum(row^2) / n + epsilon)
  float (*inverse_rms)(const float* row, int64_t n, float epsilon);
  // x[0..n) -> x H, H the Hadamard matrix of order n (a power of two) with entries +-1: Sylvester's, not normalized
  void (*hadamard)(float* x, int64_t n);
  // out[i] = silu(gate[i]) * up[i], i < n, n a multiple of 16; both: 16 of gate and 16 of up in turn
  void (*swiglu)(const float* both, float* out, int64_t n);
  // rotary embedding of one head over halves: cos, sin: [n / 2]
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t n);
  // x[0..n) -> int8 with one scale, which is returned (0 for a row of zeros), their magnitudes, and their bias
  float (*quantize_head)(const float* x, int64_t n, int8_t* values, uint8_t* magnitudes, int32_t* bias);
  // one chunk of attention for `rows` query rows over `blocks` consecutive entries of `table`; see attention in attend.h
  void (*attend)(const struct AttentionChunk& chunk);
  // merges a later chunk's (maximum, sum, out[n]) into an earlier one's, for `rows` rows
  void (*merge)(float* maximum, float* sum, float* out, const float* later_maximum, const float* later_sum, const float* later, int64_t rows,
                int64_t n);
  // the greatest of x[0..n), n > 0; NaN if there is one
  float (*greatest)(const float* x, int64_t n);
  // ends what the calling thread keeps between calls of matmul and attend; each thread of a step calls it at its end
  void (*finish)();
};

// x[0..n) in blocks times Hadamard's matrix of that order; a block of 1 changes nothing
inline void hadamard_blocks(const Isa& isa, float* x, int64_t n, int64_t block) {
  if (block > 1)
    for (int64_t i = 0; i < n; i += block) isa.hadamard(x + i, block);
}

// Keys and values of one KV head in one block of 16 tokens; those of a layer and head lie one after the other:
//   keys [head_dim / 4][16 tokens][4] int8 | values [head_dim / 16][4][16 dims][4 tokens] int8 | key scales [16] float | value scales [16] float
// A key block is a panel of weights whose channels are tokens; a value block is head_dim / 16 panels of depth 16: `dot` serves both.
inline int64_t kv_head_bytes(int64_t head_dim) { return 2 * kPanel * head_dim + 2 * kPanel * static_cast<int64_t>(sizeof(float)); }

constexpr int kChunkBlocks = 16;      // blocks of a chunk: softmax is computed chunk by chunk (256 tokens) and merged in order
constexpr int kAttentionRows = 32;    // query rows of an attention item, at most

struct AttentionChunk {
  const int8_t* cache;        // this layer's and KV head's part of block 0
  int64_t block_stride;       // bytes from one block to the next
  const int32_t* table;       // [blocks] ids of the chunk's blocks
  int64_t blocks;             // 1..kChunkBlocks
  const int8_t* next_cache;   // as `cache`, of the chunk that this thread is expected to take next
  const int32_t* next_table;  // [next_blocks] ids of its blocks
  int64_t next_blocks;        // 0: not known
  int64_t position;           // position of the chunk's first token
  int64_t head_dim;           // multiple of 16
  int64_t rows;               // 1..kAttentionRows
  const int8_t* values;       // [rows][head_dim] quantized queries
  const uint8_t* magnitudes;  // [rows][head_dim]
  const int32_t* biases;      // [rows]
  const float* scales;        // [rows] times the softmax scale and log2(e): scores are logarithms to base 2
  const int64_t* ages;        // [rows] position of each query: it sees tokens up to and with its own
  float* maximum;             // [rows] out; -inf where a row sees nothing of the chunk
  float* sum;                 // [rows] out
  float* out;                 // [rows][head_dim] out: sum of 2^(score - maximum) * value
};

extern const Isa scalar_isa;
#if defined(BERTH_X86)
extern const Isa avx2_isa, avx512vnni_isa, amx_isa;
bool amx_permitted();  // asks the system for this process's tile registers
#endif
#if defined(BERTH_AARCH64)
extern const Isa dotprod_isa, i8mm_isa, sve_isa, sve_i8mm_isa;
#endif

// The best set that this machine has, or the one that BERTH_ISA names; throws std::runtime_error if it is unknown or not to be had.
const Isa& select_isa();
// The sets that this build has and this machine can run, best first.
const std::vector<const Isa*>& all_isas();
// Space-separated names of the sets that can run here, best first.
const char* available_isas();

}  // namespace berth
