#include "attention_plan.h"

#include <algorithm>
#include <unordered_map>

namespace berth {
namespace {

constexpr int64_t kChunkTokens = kChunkBlocks * kPanel;

class Planner {
 public:
  Planner(const Model& model, const BatchView& batch)
      : batch_(batch), most_(std::max<int64_t>(1, kAttentionRows / model.group_heads())) {}

  AttentionPlan run(int64_t kv_heads, int threads) {
    for (int64_t s = 0; s < batch_.sequences; ++s)
      for (int64_t t = batch_.starts[s]; t < batch_.starts[s + 1]; t += most_) {
        const int64_t tokens = std::min<int64_t>(most_, batch_.starts[s + 1] - t);
        plan_.tiles.push_back({s, t, tokens, position(s, t + tokens - 1) / kChunkTokens + 1});
      }
    int64_t all = 0;
    for (const AttentionTile& tile : plan_.tiles) all += work_of(tile);
    shared_.assign(plan_.tiles.size(), 0);
    if (batch_.sequences > 1) share_chunks();
    for (size_t i = 0; i < plan_.tiles.size(); ++i) {
      AttentionTile& tile = plan_.tiles[i];
      const auto index = static_cast<int64_t>(i);
      const bool large = 4 * threads * work_of(tile) > all * kv_heads;  // so that a thread could wait long for the one that has it
      if (shared_[i] == 0 && (tile.chunks == 1 || !large)) {
        plan_.items.push_back({-1, {index}});
        continue;
      }
      tile.partial = plan_.partials;
      plan_.partials += tile.chunks;
      for (int64_t c = shared_[i]; c < tile.chunks; ++c) plan_.items.push_back({c, {index}});
      plan_.merges.push_back(index);
    }
    return std::move(plan_);
  }

 private:
  int64_t position(int64_t sequence, int64_t row) const { return batch_.contexts[sequence] - batch_.starts[sequence + 1] + row; }
  static int64_t work_of(const AttentionTile& tile) { return tile.tokens * tile.chunks; }
  const AttentionTile& tile(int64_t i) const { return plan_.tiles[static_cast<size_t>(i)]; }
  const int32_t* blocks_of(int64_t i, int64_t chunk) const {
    return batch_.tables + tile(i).sequence * batch_.width + chunk * kChunkBlocks;
  }

  // Finds the tiles of different sequences that begin with the same whole chunks, and makes them items together.
  void share_chunks() {
    std::vector<std::vector<int64_t>> together(1);  // tiles that are the same up to here, and have room for company
    for (size_t i = 0; i < plan_.tiles.size(); ++i)
      if (2 * plan_.tiles[i].tokens <= most_) together[0].push_back(static_cast<int64_t>(i));
    for (int64_t chunk = 0; !together.empty(); ++chunk) {
      std::vector<std::vector<int64_t>> next;
      for (const auto& group : together) {
        std::unordered_map<int32_t, std::vector<int64_t>> by_first;  // block of the chunk: equal prefixes share it
        for (const int64_t i : group)
          if (position(tile(i).sequence, tile(i).first) >= (chunk + 1) * kChunkTokens - 1) by_first[blocks_of(i, chunk)[0]].push_back(i);
        for (auto& [first, same] : by_first) {
          const int32_t* blocks = blocks_of(same[0], chunk);
          std::erase_if(same, [&](int64_t i) { return !std::equal(blocks, blocks + kChunkBlocks, blocks_of(i, chunk)); });
          if (same.size() < 2) continue;
          add_items(chunk, same);
          next.push_back(std::move(same));
        }
      }
      together = std::move(next);
    }
  }

  // Items of a chunk that `same` see whole, of as many tiles as have room together.
  void add_items(int64_t chunk, const std::vector<int64_t>& same) {
    AttentionItem item{chunk, {}};
    int64_t tokens = 0;
    for (const int64_t i : same) {
      if (tokens + tile(i).tokens > most_) {
        plan_.items.push_back(std::move(item));
        item = {chunk, {}};
        tokens = 0;
      }
      item.tiles.push_back(i);
      tokens += tile(i).tokens;
      shared_[static_cast<size_t>(i)] = chunk + 1;
    }
    plan_.items.push_back(std::move(item));
  }

  const BatchView& batch_;
  const int64_t most_;  // tokens of a tile
  AttentionPlan plan_;
  std::vector<int64_t> shared_;  // of each tile: its first chunks, read with other sequences'
};

}  // namespace

AttentionPlan plan_attention(const Model& model, const BatchView& batch, int threads) {
  return Planner(model, batch).run(model.kv_heads, threads);
}

}  // namespace berth
