#include "attention.h"

#include <algorithm>
#include <vector>

namespace berth {

Attention::Attention(const Model& model, const Isa& isa, Arena& arena, int threads, const BatchView& batch, int64_t num_blocks, bool by_head)
    : model_(model),
      isa_(isa),
      batch_(batch),
      plan_(plan_attention(model, batch, threads)),
      shared_(model.group_heads()),
      num_blocks_(num_blocks),
      by_head_(by_head) {
  const int64_t rows = batch.total * model.heads;
  attended = arena.take<float>(rows * model.head_dim);
  queries = arena.take<int8_t>(rows * model.head_dim);
  magnitudes = arena.take<uint8_t>(rows * model.head_dim);
  biases = arena.take<int32_t>(rows);
  scales = arena.take<float>(rows);
  ages_ = arena.take<int64_t>(batch.total * shared_);
  for (int64_t s = 0; s < batch.sequences; ++s)
    for (int64_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t)
      std::fill_n(ages_ + t * shared_, shared_, batch.contexts[s] - batch.starts[s + 1] + t);
  if (plan_.partials != 0) partials_ = arena.take<float>(plan_.partials * model.kv_heads * partial_size());
}

void Attention::attend(int64_t i, const int8_t* cache) {
  const auto each = static_cast<int64_t>(plan_.items.size());
  const auto [own, kv] = split(i, each);
  Chunk next{};
  if (i + 1 < items()) {
    const auto [later, later_kv] = split(i + 1, each);
    next = first_chunk(item(later), later_kv, cache);
  }
  attend_item(item(own), kv, cache, next);
}

void Attention::merge(int64_t i) {
  const auto [own, kv] = split(i, static_cast<int64_t>(plan_.merges.size()));
  const AttentionTile& merged = tile(plan_.merges[static_cast<size_t>(own)]);
  float* first = partial(merged, 0, kv);
  for (int64_t chunk = 1; chunk < merged.chunks; ++chunk) merge_rows(first, partial(merged, chunk, kv), merged.tokens * shared_);
  write_tile(merged, kv, first);
}

Attention::Chunk Attention::chunk_of(const AttentionTile& tile, int64_t chunk, int64_t kv, const int8_t* cache) const {
  const int64_t last = ages_[(tile.first + tile.tokens - 1) * shared_], first_block = chunk * kChunkBlocks;
  return {cache + kv * num_blocks_ * kv_head_bytes(model_.head_dim), batch_.tables + tile.sequence * batch_.width + first_block,
          std::min<int64_t>(kChunkBlocks, last / kPanel + 1 - first_block), first_block * kPanel};
}

AttentionChunk Attention::with_next(const Chunk& chunk, const Chunk& after) const {
  AttentionChunk c{};
  c.cache = chunk.cache, c.table = chunk.table, c.blocks = chunk.blocks, c.position = chunk.position;
  c.next_cache = after.cache, c.next_table = after.table, c.next_blocks = after.blocks;
  c.block_stride = kv_head_bytes(model_.head_dim);
  c.head_dim = model_.head_dim;
  return c;
}

void Attention::attend_item(const AttentionItem& item, int64_t kv, const int8_t* cache, const Chunk& after) {
  const int64_t d = model_.head_dim;
  const AttentionTile& first = tile(item.tiles[0]);
  if (item.tiles.size() > 1) return attend_together(item, kv, cache, after);
  if (item.chunk >= 0) {
    float* p = partial(first, item.chunk, kv);
    return attend_chunk(first, chunk_of(first, item.chunk, kv, cache), after, kv, p, p + kAttentionRows, p + 2 * kAttentionRows);
  }
  static thread_local std::vector<float> buffer;
  buffer.resize(static_cast<size_t>(2 * kAttentionRows * (d + 2)));
  float *result = buffer.data(), *later = result + kAttentionRows * (d + 2);
  for (int64_t chunk = 0; chunk < first.chunks; ++chunk) {
    float* p = chunk == 0 ? result : later;
    attend_chunk(first, chunk_of(first, chunk, kv, cache), chunk + 1 < first.chunks ? chunk_of(first, chunk + 1, kv, cache) : after, kv, p,
                 p + kAttentionRows, p + 2 * kAttentionRows);
    if (chunk > 0) merge_rows(result, later, first.tokens * shared_);
  }
  write_tile(first, kv, result);
}

// One chunk that several tiles see whole: their queries side by side, which serve the thread's next chunks too, and the results to each
// tile's partials.
void Attention::attend_together(const AttentionItem& item, int64_t kv, const int8_t* cache, const Chunk& after) {
  const int64_t d = model_.head_dim;
  struct Rows {
    alignas(64) float maximum[kAttentionRows], sum[kAttentionRows], scales[kAttentionRows];
    int32_t biases[kAttentionRows];
    int64_t ages[kAttentionRows];
    std::vector<int8_t> values;
    std::vector<uint8_t> magnitudes;
    std::vector<float> out;
    int64_t count;
    int64_t kv;  // this and what follows: whose queries these are
    std::vector<int64_t> tiles;
    const int8_t* cache;  // of the layer
    uint64_t step = 0;
  };
  static thread_local Rows rows;
  const bool there = rows.step == number_ && rows.cache == cache && rows.kv == kv && rows.tiles == item.tiles;
  if (!there) {
    rows.values.resize(static_cast<size_t>(kAttentionRows * d));
    rows.magnitudes.resize(static_cast<size_t>(kAttentionRows * d));
    rows.out.resize(static_cast<size_t>(kAttentionRows * d));
    rows.step = number_, rows.cache = cache, rows.kv = kv, rows.tiles = item.tiles, rows.count = 0;
  }
  int64_t& count = rows.count;
  for (size_t j = 0; !there && j < item.tiles.size(); ++j) {
    const AttentionTile& tile = this->tile(item.tiles[j]);
    const int64_t n = tile.tokens * shared_, place = (kv * batch_.total + tile.first) * shared_;
    std::copy_n(queries + place * d, n * d, rows.values.data() + count * d);
    std::copy_n(magnitudes + place * d, n * d, rows.magnitudes.data() + count * d);
    std::copy_n(biases + place, n, rows.biases + count);
    std::copy_n(scales + place, n, rows.scales + count);
    std::copy_n(ages_ + tile.first * shared_, n, rows.ages + count);
    count += n;
  }
  AttentionChunk c = with_next(chunk_of(tile(item.tiles[0]), item.chunk, kv, cache), after);
  c.rows = count;
  c.values = rows.values.data(), c.magnitudes = rows.magnitudes.data(), c.biases = rows.biases, c.scales = rows.scales, c.ages = rows.ages;
  c.maximum = rows.maximum, c.sum = rows.sum, c.out = rows.out.data();
  isa_.attend(c);
  int64_t at = 0;
  for (const int64_t i : item.tiles) {
    const AttentionTile& tile = this->tile(i);
    const int64_t n = tile.tokens * shared_;
    float* p = partial(tile, item.chunk, kv);
    std::copy_n(rows.maximum + at, n, p);
    std::copy_n(rows.sum + at, n, p + kAttentionRows);
    std::copy_n(rows.out.data() + at * d, n * d, p + 2 * kAttentionRows);
    at += n;
  }
}

void Attention::attend_chunk(const AttentionTile& tile, const Chunk& chunk, const Chunk& after, int64_t kv, float* maximum, float* sum, float* out) {
  const int64_t place = (kv * batch_.total + tile.first) * shared_;
  AttentionChunk c = with_next(chunk, after);
  c.rows = tile.tokens * shared_;
  c.values = queries + place * model_.head_dim;
  c.magnitudes = magnitudes + place * model_.head_dim;
  c.biases = biases + place;
  c.scales = scales + place;
  c.ages = ages_ + tile.first * shared_;
  c.maximum = maximum;
  c.sum = sum;
  c.out = out;
  isa_.attend(c);
}

void Attention::merge_rows(float* into, const float* later, int64_t rows) const {
  isa_.merge(into, into + kAttentionRows, into + 2 * kAttentionRows, later, later + kAttentionRows, later + 2 * kAttentionRows, rows, model_.head_dim);
}

void Attention::write_tile(const AttentionTile& tile, int64_t kv, const float* result) {
  const int64_t d = model_.head_dim;
  for (int64_t r = 0; r < tile.tokens * shared_; ++r) {
    // a Hadamard matrix not normalized, twice, multiplies by its order
    const float inverse = 1.0f / (result[kAttentionRows + r] * static_cast<float>(model_.value_block));
    const float* from = result + 2 * kAttentionRows + r * d;
    float* to = attended + ((tile.first + r / shared_) * model_.heads + kv * shared_ + r % shared_) * d;
    for (int64_t i = 0; i < d; ++i) to[i] = from[i] * inverse;
    hadamard_blocks(isa_, to, d, model_.value_block);
  }
}

}  // namespace berth
