// Two small Llamas of random weights, packed as Python packs them (kernels/packing.py): do whole steps give the same logits and cache?
#pragma once
#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "check.h"
#include "model.h"

namespace check {

// The plan and the weights of a model: rotated with 8 bits and one scale a row; or with norms at run time, 4 bits on their own grid in the
// layers, and scales for every 32 values.
class SmallModel {
 public:
  static constexpr int64_t kVocab = 1000, kHidden = 96, kIntermediate = 160, kLayers = 2, kHeads = 6, kKvHeads = 2, kHeadDim = 32;

  explicit SmallModel(bool rotated) : rotated_(rotated), unit_(rotated ? 64 : 32), weights_(1 << 20) {
    plan = {3, kVocab, kHidden, kIntermediate, kLayers, kHeads, kKvHeads, kHeadDim, rotated ? kHeadDim : 1, rotated ? kHeadDim : 1,
            rotated ? 32 : 1, 3, rotated, rotated, std::bit_cast<int32_t>(1e-5f), unit_};
    floats(kHeadDim / 2, 0.5f, 0.5f);
    floats(kHidden, rotated ? 1.0f / 32 : 1.0f, 0.01f);
    if (rotated) {
      const float q[9] = {2, -2, 1, 1, 2, 2, 2, 1, -2};  // an orthogonal matrix of order 3, times 3
      float* to = reinterpret_cast<float*>(take(sizeof q));
      for (int i = 0; i < 9; ++i) to[i] = q[i] / 3;
    }
    matrix(8, kVocab, kHidden);
    if (!rotated) matrix(8, kVocab, kHidden);
    for (int64_t l = 0; l < kLayers; ++l) {
      for (const int64_t heads : {kHeads, kKvHeads, kKvHeads}) matrix(rotated ? 8 : 4, heads * kHeadDim, kHidden);
      matrix(rotated ? 8 : 4, kHidden, kHeads * kHeadDim);
      matrix(rotated ? 8 : 4, 2 * kIntermediate, kHidden);
      matrix(rotated ? 8 : 4, kHidden, kIntermediate);
      for (int i = 0; i < 2 && !rotated; ++i) floats(kHidden, 1.0f, 0.2f);
    }
  }
  berth::Model view() const {
    return {plan.data(), static_cast<int64_t>(plan.size()), weights_.get(), weights_.size()};
  }

 private:
  uint8_t* take(size_t bytes) {
    plan.push_back(used_);
    uint8_t* p = weights_.get() + used_;
    used_ += (static_cast<int64_t>(bytes) + 63) / 64 * 64;
    if (used_ > weights_.size()) std::abort();
    return p;
  }
  void floats(int64_t n, float middle, float spread) {
    float* to = reinterpret_cast<float*>(take(static_cast<size_t>(n) * sizeof(float)));
    for (int64_t i = 0; i < n; ++i) to[i] = middle + spread * uniform();
  }
  void matrix(int bits, int64_t channels, int64_t depth) {
    channels = (channels + 15) / 16 * 16;
    const bool minima = bits == 4 && ++of_four_bits_ % 3 != 0;
    plan.insert(plan.end(), {bits, minima, unit_});
    const int64_t bytes = channels * depth * bits / 8, scales = channels * ((depth + unit_ - 1) / unit_) * (minima ? 2 : 1);
    uint8_t* to = take(static_cast<size_t>(bytes));
    for (int64_t i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(bits == 4 ? below(256) : below(255) - 127);
    auto* s = reinterpret_cast<uint16_t*>(take(static_cast<size_t>(scales) * 2));
    for (int64_t i = 0; i < scales; ++i) s[i] = static_cast<uint16_t>(bits == 8 ? 0x3A00 + below(128) : 0x1C00 + below(1024));
    if (minima)  // around -8 scales
      for (int64_t i = 0; i < scales; ++i)
        if (i / 16 % 2 == 1) s[i] = static_cast<uint16_t>(0xA800 + below(1024));
  }

  bool rotated_;
  int64_t unit_, used_ = 0, of_four_bits_ = 0;
  Array<uint8_t> weights_;

 public:
  std::vector<int64_t> plan;
};

// Two prompts of 37 and 20 tokens, then one token for each of them and a third prompt beside.
inline void compare_steps(const berth::Isa& a, const berth::Isa& b, bool rotated, int threads) {
  constexpr int64_t kBlocks = 9;
  const SmallModel small(rotated);
  const berth::Model model = small.view();
  const int64_t cache_bytes = model.layers * kBlocks * model.kv_block_bytes();
  Array<int8_t> expected_cache(cache_bytes), found_cache(cache_bytes);
  const std::vector<std::vector<int32_t>> contexts = {{37, 20}, {38, 21, 5}}, fresh = {{37, 20}, {1, 1, 5}};
  for (size_t i = 0; i < contexts.size(); ++i) {
    const auto sequences = static_cast<int32_t>(contexts[i].size());
    std::vector<int32_t> tokens, starts = {0}, rows, tables;
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t t = 0; t < fresh[i][static_cast<size_t>(s)]; ++t) tokens.push_back(static_cast<int32_t>(below(SmallModel::kVocab)));
      starts.push_back(static_cast<int32_t>(tokens.size()));
      rows.push_back(starts.back() - 1);
      for (int32_t j = 0; j < 3; ++j) tables.push_back(s + 3 * j);
    }
    std::vector<int32_t> batch = {sequences, static_cast<int32_t>(tokens.size()), sequences, 3};
    const auto append = [&](const std::vector<int32_t>& part) { batch.insert(batch.end(), part.begin(), part.end()); };
    append(tokens), append(starts), append(contexts[i]), append(rows), append(tables);
    Array<float> expected(sequences * model.output.channels), found(sequences * model.output.channels);
    const berth::BatchView view(batch.data(), static_cast<int64_t>(batch.size()), model, kBlocks);
    Array<int32_t> best(sequences), found_best(sequences), greatest(sequences);
    berth::step(model, a, threads, view, expected_cache.get(), kBlocks, expected.get(), best.get());
    berth::step(model, b, threads, view, found_cache.get(), kBlocks, found.get(), found_best.get());
    for (int64_t n = 0; n < sequences; ++n) {
      const float* row = expected.get() + n * model.output.channels;
      greatest[n] = static_cast<int32_t>(std::max_element(row, row + SmallModel::kVocab) - row);  // the first of equals
    }
    const std::string name = std::string(rotated ? "rotated" : "4-bit") + " model, step " + std::to_string(i);
    expect_same(name + ": logits", expected, found);
    expect_same(name + ": best", greatest, best), expect_same(name + ": best", greatest, found_best);
    expect_same(name + ": cache", expected_cache, found_cache);
    for (int64_t j = 0; j < found.size(); ++j)
      if (!(found[j] - found[j] == 0.0f)) ++different, std::printf("%s: logits are not finite\n", name.c_str());
  }
}

}  // namespace check
