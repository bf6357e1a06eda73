// How does a step attend?  Item by item of its plan, over the blocks of one layer's cache at a time; partial results are merged in order.
#pragma once
#include <cstdint>
#include <utility>

#include "arena.h"
#include "attention_plan.h"
#include "isa.h"
#include "model.h"

namespace berth {

// All rows of a step.  The owner of `model` keeps it for as long as this is there.
class Attention {
 public:
  // by_head: a thread takes one KV head after the other; else chunk by chunk of the context.
  Attention(const Model& model, const Isa& isa, Arena& arena, int threads, const BatchView& batch, int64_t num_blocks, bool by_head);

  // Queries of the layer that is computed, written before `attend`.  The rows of a tile are consecutive: `place` says where a head's is.
  int8_t* queries;       // [kv_heads][T][group heads][head_dim]
  uint8_t* magnitudes;
  int32_t* biases;       // [kv_heads][T][group heads]
  float* scales;         // [kv_heads][T][group heads]
  float* attended;       // [T][heads][head_dim] the result
  int64_t place(int64_t head, int64_t token) const { return (head / shared_ * batch_.total + token) * shared_ + head % shared_; }

  int64_t position(int64_t token) const { return ages_[token * shared_]; }

  // A phase of so many items, then one of so many merges, if there are any.  cache: the layer's.
  int64_t items() const { return static_cast<int64_t>(plan_.items.size()) * model_.kv_heads; }
  void attend(int64_t item, const int8_t* cache);
  int64_t merges() const { return static_cast<int64_t>(plan_.merges.size()) * model_.kv_heads; }
  void merge(int64_t merge);

 private:
  // Where a chunk of context lies, up to what the tile's last token sees.
  struct Chunk {
    const int8_t* cache;
    const int32_t* table;
    int64_t blocks, position;
  };

  const AttentionTile& tile(int64_t i) const { return plan_.tiles[static_cast<size_t>(i)]; }
  const AttentionItem& item(int64_t i) const { return plan_.items[static_cast<size_t>(i)]; }
  // Of the i-th of n items (or merges) of each KV head: which it is, and the KV head.
  std::pair<int64_t, int64_t> split(int64_t i, int64_t n) const {
    return by_head_ ? std::pair(i % n, i / n) : std::pair(i / model_.kv_heads, i % model_.kv_heads);
  }
  Chunk chunk_of(const AttentionTile& tile, int64_t chunk, int64_t kv, const int8_t* cache) const;
  Chunk first_chunk(const AttentionItem& item, int64_t kv, const int8_t* cache) const {
    return chunk_of(tile(item.tiles[0]), item.chunk < 0 ? 0 : item.chunk, kv, cache);
  }
  AttentionChunk with_next(const Chunk& chunk, const Chunk& after) const;

  // `after`: what this thread is likely to read next.
  void attend_item(const AttentionItem& item, int64_t kv, const int8_t* cache, const Chunk& after);
  void attend_together(const AttentionItem& item, int64_t kv, const int8_t* cache, const Chunk& after);
  void attend_chunk(const AttentionTile& tile, const Chunk& chunk, const Chunk& after, int64_t kv, float* maximum, float* sum, float* out);

  // A partial result: maximum [kAttentionRows], sum [kAttentionRows], out [kAttentionRows][head_dim].
  int64_t partial_size() const { return kAttentionRows * (model_.head_dim + 2); }
  float* partial(const AttentionTile& tile, int64_t chunk, int64_t kv) const {
    return partials_ + ((tile.partial + chunk) * model_.kv_heads + kv) * partial_size();
  }
  void merge_rows(float* into, const float* later, int64_t rows) const;
  void write_tile(const AttentionTile& tile, int64_t kv, const float* result);

  const Model& model_;
  const Isa& isa_;
  const BatchView batch_;
  const AttentionPlan plan_;
  const int64_t shared_, num_blocks_;  // query heads of a KV head
  const bool by_head_;
  int64_t* ages_;                      // [T][group heads] position
  float* partials_ = nullptr;
  const uint64_t number_ = ++made_;    // of this step
  static inline uint64_t made_ = 0;    // so far, one at a time
};

}  // namespace berth
