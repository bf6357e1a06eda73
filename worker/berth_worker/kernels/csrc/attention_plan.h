// Which work of attention goes together, and what is put together afterwards?  Planned once a step, for every layer and KV head alike.
#pragma once
#include <cstdint>
#include <vector>

#include "model.h"

namespace berth {

// The queries of consecutive tokens of a sequence.
struct AttentionTile {
  int64_t sequence, first, tokens;  // rows of the batch
  int64_t chunks;                   // chunks of context that its last token sees
  int64_t partial = -1;             // index of its first partial result, if its chunks are separate items
};

// All chunks of one tile (chunk -1), or one chunk of one tile or more whose blocks there are the same: they are read once for all.
struct AttentionItem {
  int64_t chunk;
  std::vector<int64_t> tiles;
};

struct AttentionPlan {
  std::vector<AttentionTile> tiles;
  std::vector<AttentionItem> items;
  std::vector<int64_t> merges;  // tiles whose chunks are separate items
  int64_t partials = 0;         // partial results of a KV head
};

// Work is split by chunk where a tile would be much of what a thread has to do, and where sequences share blocks.
AttentionPlan plan_attention(const Model& model, const BatchView& batch, int threads);

}  // namespace berth
