// How does one step of the whole model run?  One region of the thread pool, five phases a layer.
//
// No result depends on how the work is split: integer sums are exact, and each float is computed by one thread in a fixed order.  So a
// row's logits are the same bits for any number of threads, any batch and any cut of the prompt into steps.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "model.h"
#include "pool.h"

namespace berth {
namespace {

constexpr int64_t kTileRows = 32;   // rows that an item of QKV or gate/up takes through its float buffer at once
constexpr int64_t kSerialRows = 2;  // up to this many rows, the last thread of a phase does the work between two matrices alone

// One item of attention: the queries of consecutive tokens of a sequence, over some of its chunks of context.
struct Tile {
  int64_t sequence, first, tokens;  // rows of the batch
  int64_t chunks;                   // chunks that its last token sees
  int64_t partial;                  // index of its first partial result, if split
};
struct Item {
  int64_t tile, chunk;  // chunk -1: all of them
};

class Step {
 public:
  Step(Model model, const Isa& isa, Arena& arena, int threads, const BatchView& batch, int8_t* cache, int64_t num_blocks, float* logits)
      : m_(std::move(model)), isa_(isa), b_(batch), cache_(cache), num_blocks_(num_blocks), logits_(logits), threads_(threads) {
    const int64_t t = b_.total, d = m_.head_dim;
    x_ = arena.take<float>(t * m_.hidden);
    normed_ = activations(arena, t, m_.hidden);
    mixed_ = activations(arena, t, m_.heads * d);
    gated_ = activations(arena, t, m_.intermediate);
    final_ = activations(arena, b_.outputs, m_.hidden);
    attended_ = arena.take<float>(t * m_.heads * d);
    h_ = arena.take<float>(t * m_.intermediate);
    cos_ = arena.take<float>(t * d / 2);
    sin_ = arena.take<float>(t * d / 2);
    queries_ = arena.take<int8_t>(t * m_.heads * d);
    query_magnitudes_ = arena.take<uint8_t>(t * m_.heads * d);
    query_scales_ = arena.take<float>(t * m_.heads);
    ages_ = arena.take<int64_t>(t * m_.group_heads());
    slots_ = arena.take<int64_t>(t);
    place_tokens();
    plan_attention(arena);
  }

  void run(Member& team) {
    team.phase(b_.total, [&](int64_t t) { begin_row(t); });
    for (int64_t l = 0; l < m_.layers; ++l) {
      const Layer& layer = m_.layer[static_cast<size_t>(l)];
      int8_t* cache = cache_ + l * num_blocks_ * m_.kv_block_bytes();
      team.phase(m_.heads + 2 * m_.kv_heads, [&](int64_t head) { project_head(layer.qkv, head, cache); });
      attention(team, cache);
      add_product(team, layer.o, mixed_, [&](int64_t t) { norm_row(t); });
      const int64_t blocks = m_.intermediate / m_.ffn_block;
      then_rows(team, blocks, [&](int64_t block) { feed_forward(layer.gate_up, block); }, b_.total,
                [&](int64_t t) { isa_.quantize(h_ + t * m_.intermediate, 1.0f, gated_, t); });
      if (l + 1 < m_.layers)
        add_product(team, layer.down, gated_, [&](int64_t t) { norm_row(t); });
      else
        add_product(team, layer.down, gated_, [](int64_t) {});
    }
    team.phase(b_.outputs, [&](int64_t n) { finish_row(n); });
    const int64_t panels = m_.output.channels / kPanel, each = 16;
    team.phase((panels + each - 1) / each, [&](int64_t item) {
      const int64_t first = item * each, last = first + each < panels ? first + each : panels;
      isa_.matmul(m_.output, first, last, final_, b_.outputs, logits_ + first * kPanel, m_.output.channels, false);
    });
  }

 private:
  Activations activations(Arena& arena, int64_t rows, int64_t depth) const {
    Activations a{nullptr, nullptr, nullptr, depth, m_.embedding.group};
    a.values = arena.take<int8_t>(rows * depth);
    a.magnitudes = arena.take<uint8_t>(rows * depth);
    a.scales = arena.take<float>(rows * a.groups());
    return a;
  }

  // -- planning: where each token goes, and who attends to what -------------------------------------------------------------------------

  void place_tokens() {
    for (int64_t s = 0; s < b_.sequences; ++s)
      for (int64_t t = b_.starts[s]; t < b_.starts[s + 1]; ++t) {
        const int64_t position = b_.contexts[s] - b_.starts[s + 1] + t;
        slots_[t] = static_cast<int64_t>(b_.tables[s * b_.width + position / kPanel]) * kPanel + position % kPanel;
        for (int64_t j = 0; j < m_.group_heads(); ++j) ages_[t * m_.group_heads() + j] = position;
      }
  }

  void plan_attention(Arena& arena) {
    const int64_t most = std::max<int64_t>(1, kAttentionRows / m_.group_heads());
    for (int64_t s = 0; s < b_.sequences; ++s)
      for (int64_t t = b_.starts[s]; t < b_.starts[s + 1]; t += most) {
        const int64_t tokens = std::min<int64_t>(most, b_.starts[s + 1] - t);
        const int64_t last = ages_[(t + tokens - 1) * m_.group_heads()];
        tiles_.push_back({s, t, tokens, last / (kPanel * kChunkBlocks) + 1, 0});
      }
    split_ = static_cast<int64_t>(tiles_.size()) * m_.kv_heads < 4 * threads_;
    int64_t partials = 0;
    for (size_t i = 0; i < tiles_.size(); ++i) {
      Tile& tile = tiles_[i];
      if (split_ && tile.chunks > 1) {
        tile.partial = partials;
        partials += tile.chunks;
        for (int64_t c = 0; c < tile.chunks; ++c) items_.push_back({static_cast<int64_t>(i), c});
        merges_.push_back(static_cast<int64_t>(i));
      } else {
        items_.push_back({static_cast<int64_t>(i), -1});
      }
    }
    partials_ = partials == 0 ? nullptr : arena.take<float>(partials * m_.kv_heads * kAttentionRows * (m_.head_dim + 2));
  }

  // -- phases -----------------------------------------------------------------------------------------------------------------------------

  // Items of a phase, then row(t) for each row: by the last thread alone if there are few, as a phase of their own if many.
  template <class Work, class Row>
  void then_rows(Member& team, int64_t count, Work&& work, int64_t rows, Row&& row) {
    if (rows <= kSerialRows || team.threads() == 1) {
      team.phase(count, work, [&] { for (int64_t t = 0; t < rows; ++t) row(t); });
    } else {
      team.phase(count, work);
      team.phase(rows, row);
    }
  }

  // x += a times m, then row(t) for each row.
  template <class Row>
  void add_product(Member& team, const Matrix& m, const Activations& a, Row&& row) {
    const int64_t panels = m.channels / kPanel;
    const int64_t each = std::max<int64_t>(1, panels / (4 * team.threads()));
    then_rows(team, (panels + each - 1) / each, [&](int64_t item) {
      const int64_t first = item * each, last = std::min(first + each, panels);
      isa_.matmul(m, first, last, a, b_.total, x_ + first * kPanel, m_.hidden, true);
    }, b_.total, row);
  }

  void begin_row(int64_t t) {
    const Matrix& e = m_.embedding;
    const int64_t token = b_.tokens[t], panel = token / kPanel, channel = token % kPanel;
    const int8_t* weights = e.weights + panel * e.depth * kPanel + channel * 4;
    const uint16_t* scales = e.scales + panel * e.groups() * kPanel + channel;
    for (int64_t k = 0; k < e.depth; ++k) {
      const uint32_t bits = static_cast<uint32_t>(scales[k / e.group * kPanel]) << 16;
      float scale;
      __builtin_memcpy(&scale, &bits, 4);
      x_[t * m_.hidden + k] = static_cast<float>(weights[k / 4 * 64 + k % 4]) * scale;
    }
    const auto position = static_cast<float>(ages_[t * m_.group_heads()]);
    for (int64_t i = 0; i < m_.head_dim / 2; ++i) {
      cos_[t * m_.head_dim / 2 + i] = std::cos(position * m_.frequencies[i]);
      sin_[t * m_.head_dim / 2 + i] = std::sin(position * m_.frequencies[i]);
    }
    norm_row(t);
  }

  // RMSNorm; its gain is in the weights that follow.
  void norm_row(int64_t t) {
    const float* x = x_ + t * m_.hidden;
    isa_.quantize(x, isa_.inverse_rms(x, m_.hidden, m_.epsilon), normed_, t);
  }

  // One head of q, k or v for all rows: project, rotate, quantize; keys and values go into the cache.
  void project_head(const Matrix& qkv, int64_t head, int8_t* cache) {
    const int64_t d = m_.head_dim, panels = d / kPanel, shared = m_.group_heads();
    alignas(64) float buffer[kTileRows * 256];
    std::vector<float> large;
    float* out = buffer;
    if (d > 256) large.resize(static_cast<size_t>(kTileRows * d)), out = large.data();
    alignas(64) int8_t packed[4096];
    alignas(64) uint8_t unused[4096];
    const float softmax_divisor = std::sqrt(static_cast<float>(d)) * static_cast<float>(m_.head_block);
    for (int64_t row = 0; row < b_.total; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, b_.total - row);
      isa_.matmul(qkv, head * panels, (head + 1) * panels, from(normed_, row), rows, out, d, false);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = row + r;
        float* x = out + r * d;
        if (head < m_.heads + m_.kv_heads) {
          isa_.rotate(x, cos_ + t * d / 2, sin_ + t * d / 2, d);
          for (int64_t i = 0; i < d; i += m_.head_block) isa_.hadamard(x + i, m_.head_block);
        }
        if (head < m_.heads) {
          // [kv head][token][query head of the group]: the rows of an attention tile are consecutive
          const int64_t place = (head / shared * b_.total + t) * shared + head % shared;
          query_scales_[place] = isa_.quantize_head(x, d, queries_ + place * d, query_magnitudes_ + place * d) / softmax_divisor;
        } else {
          const bool value = head >= m_.heads + m_.kv_heads;
          const int64_t kv = head - m_.heads - (value ? m_.kv_heads : 0), slot = slots_[t] % kPanel;
          int8_t* to = cache + slots_[t] / kPanel * m_.kv_block_bytes() + kv * kv_head_bytes(d);
          float* scales = reinterpret_cast<float*>(to + 2 * kPanel * d);
          scales[(value ? kPanel : 0) + slot] = isa_.quantize_head(x, d, packed, unused);
          if (value)
            for (int64_t i = 0; i < d; ++i) to[kPanel * d + i / 16 * 256 + slot / 4 * 64 + i % 16 * 4 + slot % 4] = packed[i];
          else
            for (int64_t i = 0; i < d; ++i) to[i / 4 * 64 + slot * 4 + i % 4] = packed[i];
        }
      }
    }
  }

  void attention(Member& team, const int8_t* cache) {
    const auto quantize = [&](int64_t t) { isa_.quantize(attended_ + t * m_.heads * m_.head_dim, 1.0f, mixed_, t); };
    const auto attend = [&](int64_t i) { attend_item(items_[static_cast<size_t>(i / m_.kv_heads)], i % m_.kv_heads, cache); };
    const auto count = static_cast<int64_t>(items_.size()) * m_.kv_heads;
    if (merges_.empty()) return then_rows(team, count, attend, b_.total, quantize);
    team.phase(count, attend);
    then_rows(team, static_cast<int64_t>(merges_.size()) * m_.kv_heads,
              [&](int64_t i) { merge_tile(tiles_[static_cast<size_t>(merges_[static_cast<size_t>(i / m_.kv_heads)])], i % m_.kv_heads); },
              b_.total, quantize);
  }

  void attend_item(const Item& item, int64_t kv, const int8_t* cache) {
    const Tile& tile = tiles_[static_cast<size_t>(item.tile)];
    const int64_t d = m_.head_dim, rows = tile.tokens * m_.group_heads();
    if (item.chunk >= 0) {
      float* p = partial(tile, item.chunk, kv);
      return attend_chunk(tile, item.chunk, kv, cache, p, p + kAttentionRows, p + 2 * kAttentionRows);
    }
    static thread_local std::vector<float> buffer;
    buffer.resize(static_cast<size_t>(2 * kAttentionRows * (d + 2)));
    float *first = buffer.data(), *later = first + kAttentionRows * (d + 2);
    for (int64_t chunk = 0; chunk < tile.chunks; ++chunk) {
      float* p = chunk == 0 ? first : later;
      attend_chunk(tile, chunk, kv, cache, p, p + kAttentionRows, p + 2 * kAttentionRows);
      if (chunk > 0) merge_rows(first, later, rows);
    }
    write_tile(tile, kv, first);
  }

  // A partial result: maximum [kAttentionRows], sum [kAttentionRows], out [kAttentionRows][head_dim].
  float* partial(const Tile& tile, int64_t chunk, int64_t kv) const {
    return partials_ + ((tile.partial + chunk) * m_.kv_heads + kv) * kAttentionRows * (m_.head_dim + 2);
  }

  void merge_rows(float* into, const float* later, int64_t rows) const {
    const int64_t d = m_.head_dim;
    for (int64_t r = 0; r < rows; ++r)
      isa_.merge(into + r, into + kAttentionRows + r, into + 2 * kAttentionRows + r * d, later[r], later[kAttentionRows + r],
                 later + 2 * kAttentionRows + r * d, d);
  }

  void merge_tile(const Tile& tile, int64_t kv) {
    float* first = partial(tile, 0, kv);
    for (int64_t chunk = 1; chunk < tile.chunks; ++chunk) merge_rows(first, partial(tile, chunk, kv), tile.tokens * m_.group_heads());
    write_tile(tile, kv, first);
  }

  void write_tile(const Tile& tile, int64_t kv, const float* result) {
    const int64_t d = m_.head_dim, shared = m_.group_heads();
    for (int64_t r = 0; r < tile.tokens * shared; ++r) {
      const float inverse = 1.0f / result[kAttentionRows + r];
      const float* from = result + 2 * kAttentionRows + r * d;
      float* to = attended_ + ((tile.first + r / shared) * m_.heads + kv * shared + r % shared) * d;
      for (int64_t i = 0; i < d; ++i) to[i] = from[i] * inverse;
    }
  }

  void attend_chunk(const Tile& tile, int64_t chunk, int64_t kv, const int8_t* cache, float* maximum, float* sum, float* out) {
    const int64_t shared = m_.group_heads(), place = (kv * b_.total + tile.first) * shared;
    const int64_t last = ages_[(tile.first + tile.tokens - 1) * shared], first_block = chunk * kChunkBlocks;
    AttentionChunk c{};
    c.cache = cache + kv * kv_head_bytes(m_.head_dim);
    c.block_stride = m_.kv_block_bytes();
    c.table = b_.tables + tile.sequence * b_.width + first_block;
    c.blocks = std::min<int64_t>(kChunkBlocks, last / kPanel + 1 - first_block);
    c.blocks_after = last / kPanel + 1 - first_block - c.blocks;
    c.position = first_block * kPanel;
    c.head_dim = m_.head_dim;
    c.rows = tile.tokens * shared;
    c.values = queries_ + place * m_.head_dim;
    c.magnitudes = query_magnitudes_ + place * m_.head_dim;
    c.scales = query_scales_ + place;
    c.ages = ages_ + tile.first * shared;
    c.maximum = maximum;
    c.sum = sum;
    c.out = out;
    isa_.attend(c);
  }

  // One Hadamard block of the feed-forward's inner channels for all rows: gate, up, SiLU, product, Hadamard.
  void feed_forward(const Matrix& gate_up, int64_t block) {
    const int64_t n = m_.ffn_block, panels = 2 * n / kPanel;
    static thread_local std::vector<float> buffer;
    buffer.resize(static_cast<size_t>(kTileRows * 2 * n));
    for (int64_t row = 0; row < b_.total; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, b_.total - row);
      isa_.matmul(gate_up, block * panels, (block + 1) * panels, from(normed_, row), rows, buffer.data(), 2 * n, false);
      for (int64_t r = 0; r < rows; ++r) {
        float* to = h_ + (row + r) * m_.intermediate + block * n;
        for (int64_t i = 0; i < n; i += kPanel) {
          const float* gate = buffer.data() + r * 2 * n + 2 * i;
          isa_.swiglu(gate, gate + kPanel, to + i, kPanel);
        }
        isa_.hadamard(to, n);
      }
    }
  }

  // The last norm.  Where the output matrix is the embedding, whose rows are rotated but not multiplied by the gain, the gain is applied
  // in the unrotated basis: x (Q (x) H)^T, times gain, (Q (x) H).
  void finish_row(int64_t n) {
    const float* x = x_ + static_cast<int64_t>(b_.rows[n]) * m_.hidden;
    const float scale = isa_.inverse_rms(x, m_.hidden, m_.epsilon);
    if (!m_.tied) return isa_.quantize(x, scale, final_, n);
    static thread_local std::vector<float> plain, mixed;
    plain.assign(x, x + m_.hidden);
    mixed.resize(static_cast<size_t>(m_.hidden));
    const int64_t odd = m_.odd, p = m_.hidden / odd;
    const auto turn = [&](const std::vector<float>& from, std::vector<float>& to, bool back) {
      for (int64_t i = 0; i < odd; ++i)
        for (int64_t k = 0; k < p; ++k) {
          float sum = 0.0f;
          for (int64_t j = 0; j < odd; ++j)
            sum += m_.odd_rotation[back ? i * odd + j : j * odd + i] * from[static_cast<size_t>(j * p + k)];
          to[static_cast<size_t>(i * p + k)] = sum;
        }
      for (int64_t i = 0; i < odd; ++i) isa_.hadamard(to.data() + i * p, p);
    };
    turn(plain, mixed, true);
    for (int64_t i = 0; i < m_.hidden; ++i) mixed[static_cast<size_t>(i)] *= m_.gain[i];
    turn(mixed, plain, false);
    isa_.quantize(plain.data(), scale, final_, n);
  }

  static Activations from(const Activations& a, int64_t row) {
    Activations b = a;
    b.values += row * a.depth;
    b.magnitudes += row * a.depth;
    b.scales += row * a.groups();
    return b;
  }

  // Owned, because a late thread may read sizes after the step has ended (see Pool::run); it follows no pointer then.
  const Model m_;
  const Isa& isa_;
  const BatchView b_;
  int8_t* cache_;
  int64_t num_blocks_;
  float* logits_;
  int threads_;

  float* x_;                                       // [T][hidden] residual stream, rotated
  Activations normed_, mixed_, gated_, final_;     // inputs of qkv and gate/up, o, down, output
  float *attended_, *h_;                           // [T][heads][head_dim], [T][intermediate]
  float *cos_, *sin_;                              // [T][head_dim / 2]
  int8_t* queries_;                                // [kv_heads][T][group heads][head_dim]
  uint8_t* query_magnitudes_;
  float* query_scales_;                            // [kv_heads][T][group heads]
  int64_t* ages_;                                  // [T][group heads] position
  int64_t* slots_;                                 // [T] block * 16 + offset
  bool split_ = false;
  std::vector<Tile> tiles_;
  std::vector<Item> items_;
  std::vector<int64_t> merges_;                    // tiles that were split
  float* partials_ = nullptr;
};

}  // namespace

void step(Model model, const Isa& isa, int threads, const BatchView& batch, int8_t* cache, int64_t num_blocks, float* logits) {
  static std::mutex one_step_at_a_time;
  static Arena arena;
  const std::lock_guard<std::mutex> lock(one_step_at_a_time);
  arena.reset();
  const auto step = std::make_shared<Step>(std::move(model), isa, arena, threads, batch, cache, num_blocks, logits);
  Pool::get(threads).run([step](Member& team) { step->run(team); });
}

}  // namespace berth
