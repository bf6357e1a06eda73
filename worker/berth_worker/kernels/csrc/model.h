// What is a Llama to the kernels?  Views of one block of memory that Python packed (kernels/packing.py), described by one array of integers.
#pragma once
#include <cstdint>
#include <vector>

#include "isa.h"

namespace berth {

struct Layer {
  Matrix q, k, v;     // heads x hidden, kv heads x hidden (twice)
  Matrix o;           // hidden x q heads
  Matrix gate_up;     // panels alternate: 16 gate channels, the same 16 up channels
  Matrix down;        // hidden x intermediate
  const float *attention_gain, *ffn_gain;  // [hidden] of the norms; null where they are in the weights
};

struct Model {
  int64_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim;
  int64_t head_block;   // order of the Hadamard matrix that q and k are multiplied by after the rotary embedding
  int64_t value_block;  // order of the one that v is multiplied by before it is quantized, and what attention gives after; 1: none
  int64_t ffn_block;    // order of the one that the input of `down` is multiplied by; 1: none
  int64_t odd;          // the residual stream is rotated by Q (x) H: Q orthogonal of this odd order, H Hadamard of hidden / odd
  bool rotated;         // or not: then norms have gains at run time, and activations a scale for each unit
  bool tied;            // output is the embedding: the last norm's gain is applied at run time, in the unrotated basis
  float epsilon;
  int64_t unit;               // of activations
  const float* frequencies;   // [head_dim / 2] radians a position
  const float* gain;          // [hidden] last norm's gain (rotated: / (hidden / odd)); null where it is in the output matrix
  const float* odd_rotation;  // [odd][odd] Q; rotated and tied only
  Matrix embedding, output;
  std::vector<Layer> layer;

  int64_t group_heads() const { return heads / kv_heads; }
  int64_t kv_block_bytes() const { return kv_heads * kv_head_bytes(head_dim); }

  // Reads `plan`, whose offsets point into weights[0..bytes); throws std::runtime_error where one does not fit.
  Model(const int64_t* plan, int64_t length, const uint8_t* weights, int64_t bytes);
};

// One step: int32 [4 + T + (S + 1) + S + N + S * width] = S, T, N, width, then tokens, sequence starts, context lengths, output rows, tables.
struct BatchView {
  int64_t sequences, total, outputs, width;
  const int32_t *tokens, *starts, *contexts, *rows, *tables;
  // Throws std::runtime_error if anything is outside the batch, the model or the cache.
  BatchView(const int32_t* data, int64_t length, const Model& model, int64_t num_blocks);
};

// Runs the batch: writes the K and V of its tokens into cache [layers][kv_heads][num_blocks][kv_head_bytes], logits [N][output.channels], and
// best [N], the token with the greatest logit: of equals the first; NaN counts as the greatest.
void step(Model model, const Isa& isa, int threads, const BatchView& batch, int8_t* cache, int64_t num_blocks, float* logits, int32_t* best);

}  // namespace berth
