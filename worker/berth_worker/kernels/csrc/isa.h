// What does one instruction set offer?  A table of functions over plain arrays; every set gives the same bits.
//
// Integer dot products are exact.  Floating point is written once (body.h), compiled for each set without contraction or
// reassociation, so the order of operations is that of the source everywhere.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace berth {

constexpr int kPanel = 16;  // output channels of a panel of weights; also tokens of a KV block
constexpr int kRows = 4;    // rows of activations that a dot product takes at once, at most

// A matrix of int8 weights [channels][depth], packed for one sequential read:
//   weights: [channels / 16][depth / 4][16][4] int8    a granule of 16 bytes is 4 channels x 4 of depth; values in [-127, 127]
//   scales:  [channels / 16][groups][16]       bf16    one for each channel and group of `group` along the depth
// Channels and depth are padded with zeros (to 16 and 4).  Granules of 128 bits serve AVX2, VNNI (64-byte lines: 16 channels), NEON
// dotprod (4 channels an instruction), i8mm (after zip1/zip2 of two granules) and SVE of any length.
struct Matrix {
  const int8_t* weights;
  const uint16_t* scales;
  int64_t channels;  // multiple of 16
  int64_t depth;     // multiple of 4
  int64_t group;     // multiple of 4; the last group may be shorter
  int64_t groups() const { return (depth + group - 1) / group; }
};

// Rows of activations, quantized in the same groups:
//   values: [rows][depth] int8 in [-127, 127];  magnitudes: [rows][depth] their absolute values;  scales: [rows][groups] float
struct Activations {
  int8_t* values;
  uint8_t* magnitudes;
  float* scales;
  int64_t depth;
  int64_t group;
  int64_t groups() const { return (depth + group - 1) / group; }
};

struct Isa {
  const char* name;
  // out[r][c] = sum over k of values[r][k] * panel[c][k], r < rows <= kRows, c < 16; depth a multiple of 4.  `ahead` is where as many bytes
  // lie that will be read next (it may be any address, and is only a hint), or null.
  void (*dot)(const int8_t* panel, int64_t depth, const int8_t* values, const uint8_t* magnitudes, int64_t stride, int rows,
              const int8_t* ahead, int32_t* out);
  // out[r][(panel - first) * 16 + c] = (or +=) the product of row r with channel c of panels first <= panel < last; stride in floats
  void (*matmul)(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add);
  // row[0..depth) times `scale`, quantized by group into row r of a
  void (*quantize)(const float* row, float scale, const Activations& a, int64_t r);
  // 1 / root mean square of row: 1 / sqrt(sum(row^2) / n + epsilon)
  float (*inverse_rms)(const float* row, int64_t n, float epsilon);
  // x[0..n) -> x H, H the Hadamard matrix of order n (a power of two) with entries +-1: Sylvester's, not normalized
  void (*hadamard)(float* x, int64_t n);
  // out[i] = silu(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  // rotary embedding of one head over halves: cos, sin: [n / 2]
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t n);
  // x[0..n) -> int8 with one scale, which is returned (0 for a row of zeros), and their magnitudes
  float (*quantize_head)(const float* x, int64_t n, int8_t* values, uint8_t* magnitudes);
  // one chunk of attention for `rows` query rows over `blocks` consecutive entries of `table`; see attention in body.h
  void (*attend)(const struct AttentionChunk& chunk);
  // merges a later chunk's (maximum, sum, out[n]) into an earlier one's
  void (*merge)(float* maximum, float* sum, float* out, float later_maximum, float later_sum, const float* later, int64_t n);
};

// Keys and values of one KV head in one block of 16 tokens; a block of a layer holds kv_heads of them one after the other:
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
  int64_t blocks_after;       // entries of the table that follow, for later chunks
  int64_t position;           // position of the chunk's first token
  int64_t head_dim;           // multiple of 16
  int64_t rows;               // 1..kAttentionRows
  const int8_t* values;       // [rows][head_dim] quantized queries
  const uint8_t* magnitudes;  // [rows][head_dim]
  const float* scales;        // [rows] times the softmax scale
  const int64_t* ages;        // [rows] position of each query: it sees tokens up to and with its own
  float* maximum;             // [rows] out; -inf where a row sees nothing of the chunk
  float* sum;                 // [rows] out
  float* out;                 // [rows][head_dim] out: sum of exp(score - maximum) * value
};

extern const Isa scalar_isa;
#if defined(BERTH_HAS_AVX2)
extern const Isa avx2_isa;
#endif

// The best set that this machine has, or the one that BERTH_ISA names; throws std::runtime_error if it is unknown or not to be had.
const Isa& select_isa();
// The sets that this build has and this machine can run, best first.
const std::vector<const Isa*>& all_isas();
// Space-separated names of the sets that can run here, best first.
const char* available_isas();

}  // namespace berth
