#include "model.h"

#include <bit>
#include <stdexcept>
#include <string>

namespace berth {
namespace {

constexpr int64_t kPlanVersion = 3;

class Reader {
 public:
  Reader(const int64_t* plan, int64_t length, const uint8_t* weights, int64_t bytes)
      : plan_(plan), length_(length), weights_(weights), bytes_(bytes) {}

  int64_t integer(const char* what, int64_t low, int64_t high) {
    if (next_ >= length_) throw std::runtime_error("plan: ends before " + std::string(what));
    const int64_t value = plan_[next_++];
    if (value < low || value > high) throw std::runtime_error("plan: " + std::string(what) + ": found " + std::to_string(value));
    return value;
  }
  template <class T>
  const T* array(const char* what, int64_t count) {
    const int64_t offset = integer(what, 0, bytes_);
    if (offset % 64 != 0 || count < 0 || count > (bytes_ - offset) / static_cast<int64_t>(sizeof(T)))
      throw std::runtime_error("plan: " + std::string(what) + " does not fit the weights");
    return reinterpret_cast<const T*>(weights_ + offset);
  }
  // Its bits, whether it has minima, the depth that shares a scale, and where its weights and scales lie.
  Matrix matrix(const char* what, int64_t channels, int64_t depth, int64_t unit) {
    Matrix m{static_cast<int>(integer(what, 4, 8)), false, nullptr, nullptr, channels, depth, 0};
    if (m.bits != 4 && m.bits != 8) throw std::runtime_error("plan: " + std::string(what) + ": 4 or 8 bits");
    m.minima = integer(what, 0, m.bits == 4 ? 1 : 0) == 1;
    m.group = integer(what, unit, int64_t{1} << 31);
    if (m.group % unit != 0) throw std::runtime_error("plan: " + std::string(what) + ": group is not a multiple of the unit");
    m.weights = array<int8_t>(what, channels / kPanel * m.panel_bytes());
    m.scales = array<uint16_t>(what, channels / kPanel * m.panel_scales());
    return m;
  }

 private:
  const int64_t* plan_;
  int64_t length_;
  const uint8_t* weights_;
  int64_t bytes_, next_ = 0;
};

int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

void require(bool fine, const std::string& what) {
  if (!fine) throw std::runtime_error(what);
}

}  // namespace

Model::Model(const int64_t* plan, int64_t length, const uint8_t* weights, int64_t bytes) {
  constexpr int64_t kMost = int64_t{1} << 31;
  Reader in(plan, length, weights, bytes);
  in.integer("version", kPlanVersion, kPlanVersion);
  vocab = in.integer("vocab", 1, kMost);
  hidden = in.integer("hidden", 16, kMost);
  intermediate = in.integer("intermediate", 16, kMost);
  layers = in.integer("layers", 1, 1 << 16);
  heads = in.integer("heads", 1, 1 << 16);
  kv_heads = in.integer("kv heads", 1, heads);
  head_dim = in.integer("head size", 16, 1 << 12);
  head_block = in.integer("head block", 1, head_dim);
  value_block = in.integer("value block", 1, head_dim);
  ffn_block = in.integer("ffn block", 1, intermediate);
  odd = in.integer("odd", 1, hidden);
  rotated = in.integer("rotated", 0, 1) == 1;
  tied = in.integer("tied", 0, 1) == 1;
  epsilon = std::bit_cast<float>(static_cast<int32_t>(in.integer("epsilon", 0, 0x7F800000)));
  unit = in.integer("unit", 8, rotated ? 256 : 64);
  require(hidden % 16 == 0 && intermediate % 16 == 0 && head_dim % 16 == 0, "plan: sizes must be multiples of 16");
  require(heads % kv_heads == 0, "plan: kv heads must divide heads");
  require(heads / kv_heads <= kAttentionRows, "plan: too many heads share a kv head");
  const auto block_of = [](int64_t block, int64_t size) { return size % block == 0 && std::has_single_bit(static_cast<uint64_t>(block)); };
  require(block_of(head_block, head_dim) && block_of(value_block, head_dim), "plan: head or value block");
  require(block_of(ffn_block, intermediate), "plan: ffn block");
  require(hidden % odd == 0 && std::has_single_bit(static_cast<uint64_t>(hidden / odd)), "plan: odd");
  require(unit % 8 == 0, "plan: unit must be a multiple of 8");
  frequencies = in.array<float>("frequencies", head_dim / 2);
  gain = tied || !rotated ? in.array<float>("gain", hidden) : nullptr;
  odd_rotation = tied && rotated ? in.array<float>("odd rotation", odd * odd) : nullptr;
  embedding = in.matrix("embedding", padded(vocab), hidden, unit);
  require(embedding.bits == 8, "plan: the embedding has 8 bits");
  output = tied ? embedding : in.matrix("output", padded(vocab), hidden, unit);
  for (int64_t i = 0; i < layers; ++i) {
    Layer l;
    l.q = in.matrix("q", heads * head_dim, hidden, unit);
    l.k = in.matrix("k", kv_heads * head_dim, hidden, unit);
    l.v = in.matrix("v", kv_heads * head_dim, hidden, unit);
    l.o = in.matrix("o", hidden, heads * head_dim, unit);
    l.gate_up = in.matrix("gate_up", 2 * intermediate, hidden, unit);
    l.down = in.matrix("down", hidden, intermediate, unit);
    l.attention_gain = rotated ? nullptr : in.array<float>("attention gain", hidden);
    l.ffn_gain = rotated ? nullptr : in.array<float>("ffn gain", hidden);
    layer.push_back(l);
  }
}

BatchView::BatchView(const int32_t* data, int64_t length, const Model& model, int64_t num_blocks) {
  require(length >= 4, "batch: too short");
  sequences = data[0], total = data[1], outputs = data[2], width = data[3];
  require(sequences > 0 && total > 0 && outputs >= 0 && width > 0, "batch: empty or negative");
  require(length == 4 + total + 2 * sequences + 1 + outputs + sequences * width, "batch: wrong length");
  tokens = data + 4, starts = tokens + total, contexts = starts + sequences + 1, rows = contexts + sequences, tables = rows + outputs;
  for (int64_t t = 0; t < total; ++t) require(tokens[t] >= 0 && tokens[t] < model.vocab, "batch: token out of range");
  for (int64_t n = 0; n < outputs; ++n) require(rows[n] >= 0 && rows[n] < total, "batch: output row out of range");
  require(starts[0] == 0 && starts[sequences] == total, "batch: sequence starts");
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t fresh = starts[s + 1] - starts[s], blocks = (contexts[s] + kPanel - 1) / kPanel;
    require(fresh > 0 && contexts[s] >= fresh && blocks <= width, "batch: sequence " + std::to_string(s));
    for (int64_t b = 0; b < blocks; ++b)
      require(tables[s * width + b] >= 0 && tables[s * width + b] < num_blocks, "batch: block out of range");
  }
}

}  // namespace berth
