// How does one step of the whole model run?  One region of the thread pool, five phases a layer.
//
// No result depends on how the work is split: integer sums are exact, and each float is computed by one thread in a fixed order.  So a
// row's logits are the same bits for any number of threads, any batch and any cut of the prompt into steps.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numbers>
#include <utility>
#include <vector>

#include "arena.h"
#include "attention.h"
#include "model.h"
#include "pool.h"

namespace berth {
namespace {

constexpr int64_t kHeadRows = 256;  // rows that an item of QKV takes through its float buffer at once
constexpr int64_t kFfnRows = 64;    // the same of gate/up
constexpr int64_t kFfnItem = 256;   // inner channels of the feed-forward that an item computes, about
constexpr int64_t kOutputChannels = 256;  // of an item of the logits
constexpr int64_t kAskedBytes = 64 << 10;  // of the next matrix, that a waiting thread asks for at most
constexpr int64_t kSerialRows = 2;  // up to this many rows, the last thread of a phase does the work between two matrices alone

// How many panels of a matrix an item has: pairs, which AMX takes at once, in 2 to 4 items a thread (short runs of memory are read slowly)
// with as little idle time at the end as can be.
int64_t panels_of_item(int64_t panels, int threads) {
  const int64_t pairs = (panels + 1) / 2, most = std::max<int64_t>(1, pairs / (2 * threads));
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t each = std::max<int64_t>(1, most / 2); each <= most; ++each) {
    const int64_t items = (pairs + each - 1) / each, longest = (items + threads - 1) / threads * each;
    if (longest <= least) best = each, least = longest;
  }
  return 2 * best;
}

// How many inner channels of the feed-forward an item has: whole blocks of the rotation, whole panels, and about kFfnItem.
constexpr int64_t channels_of_item(int64_t block) {
  const int64_t least = std::max<int64_t>(block, kPanel);
  return std::max<int64_t>(1, kFfnItem / least) * least;
}
static_assert(channels_of_item(1) == kFfnItem && channels_of_item(128) == kFfnItem && channels_of_item(512) == 512);

class Step {
 public:
  Step(Model model, const Isa& isa, Arena& arena, int threads, const BatchView& batch, int8_t* cache, int64_t num_blocks, float* logits, int32_t* best)
      : m_(std::move(model)),
        isa_(isa),
        b_(batch),
        // Few rows wait for memory, which lies chunk by chunk.  More wait for each other's partial results, most of which are in the own
        // cache if a thread takes one KV head after the other and merges what it made.
        attention_(m_, isa, arena, threads, b_, num_blocks, b_.total > kSerialRows),
        product_panels_(panels_of_item(m_.hidden / kPanel, threads)),
        product_items_((m_.hidden / kPanel + product_panels_ - 1) / product_panels_),
        output_items_((m_.vocab + kOutputChannels - 1) / kOutputChannels),
        cache_(cache),
        num_blocks_(num_blocks),
        logits_(logits),
        best_(best) {
    const int64_t t = b_.total, d = m_.head_dim;
    x_ = arena.take<float>(t * m_.hidden);
    normed_ = activations(arena, t, m_.hidden);
    mixed_ = activations(arena, t, m_.heads * d);
    gated_ = activations(arena, t, m_.intermediate);
    final_ = activations(arena, b_.outputs, m_.hidden);
    h_ = arena.take<float>(t * m_.intermediate);
    cos_ = arena.take<float>(t * d / 2);
    sin_ = arena.take<float>(t * d / 2);
    slots_ = arena.take<int64_t>(t);
    place_tokens();
    tops_ = arena.take<float>(b_.outputs * output_items_);
  }

  void run(Member& team) {
    ask_for_heads(team, m_.layer[0]);
    team.phase(b_.total, [&](int64_t t) { begin_row(t); });
    for (int64_t l = 0; l < m_.layers; ++l) {
      const Layer& layer = m_.layer[static_cast<size_t>(l)];
      int8_t* cache = cache_ + l * num_blocks_ * m_.kv_block_bytes();
      ask_for_product(team, layer.o);
      team.phase(m_.heads + 2 * m_.kv_heads, [&](int64_t head) { project_head(layer, head, cache); });
      attend(team, cache);
      const int64_t each = channels_of_item(m_.ffn_block);
      const int64_t ffn_items = (m_.intermediate + each - 1) / each;
      ask_for(team, layer.gate_up, team.first_of(ffn_items) * 2 * each / kPanel);
      add_product(team, layer.o, mixed_, [&](int64_t t) { norm_row(t, layer.ffn_gain); });
      ask_for_product(team, layer.down);
      then_rows(team, ffn_items,
                [&](int64_t item) { feed_forward(layer.gate_up, item * each, std::min(each, m_.intermediate - item * each)); }, b_.total,
                [&](int64_t t) { isa_.quantize(h_ + t * m_.intermediate, 1.0f, nullptr, gated_, t); });
      if (l + 1 < m_.layers) {
        const Layer& next = m_.layer[static_cast<size_t>(l + 1)];
        ask_for_heads(team, next);
        add_product(team, layer.down, gated_, [&](int64_t t) { norm_row(t, next.attention_gain); });
      } else {
        ask_for(team, m_.output, team.first_of(output_items_) * kOutputChannels / kPanel);
        add_product(team, layer.down, gated_, [](int64_t) {});
      }
    }
    team.phase(b_.outputs, [&](int64_t n) { finish_row(n); });
    then_rows(team, output_items_, [&](int64_t item) { output(item); }, b_.outputs, [&](int64_t n) { best_[n] = best_of(n); });
    isa_.finish();
  }

 private:
  // While it waits, a thread asks for the weights that its part of the next product begins with.
  static void ask_for(Member& team, const Matrix& m, int64_t first_panel) {
    const int8_t *begin = m.weights + first_panel * m.panel_bytes(), *end = m.weights + m.channels / kPanel * m.panel_bytes();
    team.ask_for(begin, std::min(begin + kAskedBytes, end));
  }
  void ask_for_product(Member& team, const Matrix& m) const { ask_for(team, m, team.first_of(product_items_) * product_panels_); }
  void ask_for_heads(Member& team, const Layer& layer) const {
    const Head head = head_of(layer, team.first_of(m_.heads + 2 * m_.kv_heads));
    ask_for(team, head.matrix, head.own * m_.head_dim / kPanel);
  }

  Activations activations(Arena& arena, int64_t rows, int64_t depth) const {
    Activations a{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, depth, m_.unit, m_.rotated};
    a.values = arena.take<int8_t>((rows + kMostRows - 1) / kMostRows * kMostRows * depth);
    if (a.row_scale) {
      a.eased = arena.take<int8_t>(rows * depth);
      a.heavy = arena.take<uint64_t>(rows * a.units());
    } else {
      a.magnitudes = arena.take<uint8_t>(rows * depth);
    }
    a.biases = arena.take<int32_t>(rows * a.units());
    a.scales = arena.take<float>(rows * (a.row_scale ? 1 : a.units()));
    a.weighted_sums = a.row_scale ? nullptr : arena.take<float>(rows * a.units());
    return a;
  }

  void place_tokens() {
    for (int64_t s = 0; s < b_.sequences; ++s)
      for (int64_t t = b_.starts[s]; t < b_.starts[s + 1]; ++t) {
        const int64_t position = attention_.position(t);
        slots_[t] = static_cast<int64_t>(b_.tables[s * b_.width + position / kPanel]) * kPanel + position % kPanel;
      }
  }

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

  // x += a times m, of `hidden` channels, then row(t) for each row.
  template <class Row>
  void add_product(Member& team, const Matrix& m, const Activations& a, Row&& row) {
    then_rows(team, product_items_, [&](int64_t item) {
      const int64_t first = item * product_panels_, last = std::min(first + product_panels_, m.channels / kPanel);
      isa_.matmul(m, first, last, a, b_.total, x_ + first * kPanel, m_.hidden, true);
    }, b_.total, row);
  }

  void begin_row(int64_t t) {
    const Matrix& e = m_.embedding;
    const int64_t token = b_.tokens[t], panel = token / kPanel, channel = token % kPanel;
    const int8_t* weights = e.weights + panel * e.depth * kPanel + channel * 4;
    const uint16_t* scales = e.scales + panel * e.panel_scales() + channel;
    for (int64_t start = 0; start < e.depth; start += e.group, scales += kPanel) {
      const uint32_t bits = static_cast<uint32_t>(*scales) << 16;
      const int64_t end = std::min(start + e.group, e.depth);
      for (int64_t k = start; k < end; k += 4)
        for (int64_t i = 0; i < 4; ++i) x_[t * m_.hidden + k + i] = static_cast<float>(weights[k * kPanel + i]) * std::bit_cast<float>(bits);
    }
    const auto position = static_cast<float>(attention_.position(t));
    for (int64_t i = 0; i < m_.head_dim / 2; ++i) {
      cos_[t * m_.head_dim / 2 + i] = std::cos(position * m_.frequencies[i]);
      sin_[t * m_.head_dim / 2 + i] = std::sin(position * m_.frequencies[i]);
    }
    norm_row(t, m_.layer[0].attention_gain);
  }

  // RMSNorm; a rotated model has its gain in the weights that follow.
  void norm_row(int64_t t, const float* gain) {
    const float* x = x_ + t * m_.hidden;
    isa_.quantize(x, isa_.inverse_rms(x, m_.hidden, m_.epsilon), gain, normed_, t);
  }

  struct Head {
    const Matrix& matrix;
    int64_t own;  // which of the matrix's heads
    bool query, value;
  };
  // The heads of k, then those of v, then those of q: what takes longest begins first, so that threads end together.
  Head head_of(const Layer& layer, int64_t head) const {
    if (head < m_.kv_heads) return {layer.k, head, false, false};
    head -= m_.kv_heads;
    return head < m_.kv_heads ? Head{layer.v, head, false, true} : Head{layer.q, head - m_.kv_heads, true, false};
  }

  // One head of q, k or v for all rows: project, rotate, quantize; keys and values go into the cache.
  void project_head(const Layer& layer, int64_t head, int8_t* cache) {
    const int64_t d = m_.head_dim, panels = d / kPanel;
    const auto [m, own, query, value] = head_of(layer, head);
    static thread_local std::vector<float> buffer;
    static thread_local std::vector<int8_t> packed;
    static thread_local std::vector<uint8_t> unused;
    buffer.resize(static_cast<size_t>(std::min(kHeadRows, b_.total) * d));
    packed.resize(static_cast<size_t>(d));
    unused.resize(static_cast<size_t>(d));
    float* out = buffer.data();
    // scores are logarithms to base 2; and a head's Hadamard matrix is not normalized
    const float softmax_divisor = std::sqrt(static_cast<float>(d)) * static_cast<float>(m_.head_block) * std::numbers::ln2_v<float>;
    const auto block_of = [&, own = own](int64_t t) { return cache + (own * num_blocks_ + slots_[t] / kPanel) * kv_head_bytes(d); };
    for (int64_t row = 0; row < b_.total; row += kHeadRows) {
      const int64_t rows = std::min(kHeadRows, b_.total - row);
      for (int64_t t = row; !query && t < row + rows; ++t) {  // what will be written, each line of it elsewhere
        const int8_t* to = block_of(t);
        if (value)
          for (int64_t i = 0; i < d; i += kPanel) __builtin_prefetch(to + (d + i) * kPanel + slots_[t] % kPanel / 4 * 64, 1, 2);
        else
          for (int64_t i = 0; i < d; i += 4) __builtin_prefetch(to + i * kPanel, 1, 2);
        __builtin_prefetch(to + 2 * kPanel * d + (value ? 64 : 0), 1, 2);
      }
      isa_.matmul(m, own * panels, (own + 1) * panels, from(normed_, row), rows, out, d, false);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = row + r;
        float* x = out + r * d;
        if (!value) isa_.rotate(x, cos_ + t * d / 2, sin_ + t * d / 2, d);
        hadamard_blocks(isa_, x, d, value ? m_.value_block : m_.head_block);
        if (query) {
          const int64_t place = attention_.place(own, t);
          Attention& to = attention_;
          to.scales[place] = isa_.quantize_head(x, d, to.queries + place * d, to.magnitudes + place * d, to.biases + place) / softmax_divisor;
        } else {
          const int64_t slot = slots_[t] % kPanel;
          int8_t* to = block_of(t);
          float* scales = reinterpret_cast<float*>(to + 2 * kPanel * d);
          int32_t bias;
          scales[(value ? kPanel : 0) + slot] = isa_.quantize_head(x, d, packed.data(), unused.data(), &bias);
          if (value)
            for (int64_t i = 0; i < d; ++i) to[kPanel * d + i / 16 * 256 + slot / 4 * 64 + i % 16 * 4 + slot % 4] = packed[static_cast<size_t>(i)];
          else
            for (int64_t i = 0; i < d; i += 4) __builtin_memcpy(to + i * kPanel + slot * 4, packed.data() + i, 4);
        }
      }
    }
  }

  void attend(Member& team, const int8_t* cache) {
    const auto quantize = [&](int64_t t) { isa_.quantize(attention_.attended + t * m_.heads * m_.head_dim, 1.0f, nullptr, mixed_, t); };
    const auto attend = [&](int64_t i) { attention_.attend(i, cache); };
    if (attention_.merges() == 0) return then_rows(team, attention_.items(), attend, b_.total, quantize);
    team.phase(attention_.items(), attend);
    then_rows(team, attention_.merges(), [&](int64_t i) { attention_.merge(i); }, b_.total, quantize);
  }

  // Inner channels first..first + n of the feed-forward for all rows: gate, up, SiLU, product, Hadamard.
  void feed_forward(const Matrix& gate_up, int64_t first, int64_t n) {
    static thread_local std::vector<float> buffer;
    buffer.resize(static_cast<size_t>(std::min(kFfnRows, b_.total) * 2 * n));
    for (int64_t row = 0; row < b_.total; row += kFfnRows) {
      const int64_t rows = std::min(kFfnRows, b_.total - row);
      isa_.matmul(gate_up, 2 * first / kPanel, 2 * (first + n) / kPanel, from(normed_, row), rows, buffer.data(), 2 * n, false);
      for (int64_t r = 0; r < rows; ++r) {
        float* to = h_ + (row + r) * m_.intermediate + first;
        isa_.swiglu(buffer.data() + r * 2 * n, to, n);
        hadamard_blocks(isa_, to, n, m_.ffn_block);
      }
    }
  }

  // The last norm.  Where the output matrix is the embedding, whose rows are rotated but not multiplied by the gain, the gain is applied
  // in the unrotated basis: x (Q (x) H)^T, times gain, (Q (x) H).
  void finish_row(int64_t n) {
    const float* x = x_ + static_cast<int64_t>(b_.rows[n]) * m_.hidden;
    const float scale = isa_.inverse_rms(x, m_.hidden, m_.epsilon);
    if (!m_.rotated || !m_.tied) return isa_.quantize(x, scale, m_.gain, final_, n);
    static thread_local std::vector<float> plain, mixed;
    plain.assign(x, x + m_.hidden);
    mixed.resize(static_cast<size_t>(m_.hidden));
    const int64_t odd = m_.odd, p = m_.hidden / odd;
    const auto rotate = [&](const float* from, float* to, bool back) {
      for (int64_t i = 0; i < odd; ++i) {
        std::fill_n(to + i * p, p, 0.0f);
        for (int64_t j = 0; j < odd; ++j) {
          const float q = m_.odd_rotation[back ? i * odd + j : j * odd + i];
          for (int64_t k = 0; k < p; ++k) to[i * p + k] += q * from[j * p + k];
        }
        isa_.hadamard(to + i * p, p);
      }
    };
    rotate(plain.data(), mixed.data(), true);
    for (int64_t i = 0; i < m_.hidden; ++i) mixed[static_cast<size_t>(i)] *= m_.gain[i];
    rotate(mixed.data(), plain.data(), false);
    isa_.quantize(plain.data(), scale, nullptr, final_, n);
  }

  // Logits of an item's channels for all rows, and the greatest of each row there.
  void output(int64_t item) {
    const int64_t first = item * kOutputChannels, last = std::min(first + kOutputChannels, m_.vocab), stride = m_.output.channels;
    isa_.matmul(m_.output, first / kPanel, (last + kPanel - 1) / kPanel, final_, b_.outputs, logits_ + first, stride, false);
    for (int64_t n = 0; n < b_.outputs; ++n) tops_[n * output_items_ + item] = isa_.greatest(logits_ + n * stride + first, last - first);
  }

  int32_t best_of(int64_t n) const {
    const int64_t first = first_greatest(tops_ + n * output_items_, output_items_) * kOutputChannels;
    return static_cast<int32_t>(first + first_greatest(logits_ + n * m_.output.channels + first, std::min(kOutputChannels, m_.vocab - first)));
  }
  static int64_t first_greatest(const float* x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n && x[best] == x[best]; ++i)
      if (!(x[i] <= x[best])) best = i;
    return best;
  }

  static Activations from(const Activations& a, int64_t row) {
    Activations b = a;
    b.values += row * a.depth;
    b.biases += row * a.units();
    b.scales += row * (a.row_scale ? 1 : a.units());
    if (a.row_scale) {
      b.eased += row * a.depth;
      b.heavy += row * a.units();
    } else {
      b.magnitudes += row * a.depth;
      b.weighted_sums += row * a.units();
    }
    return b;
  }

  // Owned, because a late thread may read sizes after the step has ended (see Pool::run); it follows no pointer then.
  const Model m_;
  const Isa& isa_;
  const BatchView b_;
  Attention attention_;
  const int64_t product_panels_, product_items_;   // of an item of o and down; items
  const int64_t output_items_;
  int8_t* cache_;
  int64_t num_blocks_;
  float* logits_;
  int32_t* best_;

  float* x_;                                       // [T][hidden] residual stream, rotated
  Activations normed_, mixed_, gated_, final_;     // inputs of qkv and gate/up, o, down, output
  float* h_;                                       // [T][intermediate]
  float *cos_, *sin_;                              // [T][head_dim / 2]
  int64_t* slots_;                                 // [T] block * 16 + offset
  float* tops_;                                    // [N][items of the output] greatest logits
};

}  // namespace

void step(Model model, const Isa& isa, int threads, const BatchView& batch, int8_t* cache, int64_t num_blocks, float* logits, int32_t* best) {
  static std::mutex one_step_at_a_time;
  static Arena arena;
  const std::lock_guard<std::mutex> lock(one_step_at_a_time);
  arena.reset();
  const auto step = std::make_shared<Step>(std::move(model), isa, arena, threads, batch, cache, num_blocks, logits, best);
  Pool::get(threads).run([step](Member& team) { step->run(team); });
}

}  // namespace berth
