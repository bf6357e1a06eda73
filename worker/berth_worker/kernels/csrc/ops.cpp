// What does Python see?  Torch custom ops over torch's stable ABI: they compile in seconds and need no particular torch build.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.h"
#include "pool.h"

namespace {

using torch::stable::Tensor;

void require(bool fine, const char* what) {
  if (!fine) throw std::runtime_error(what);
}

void require_plain(const Tensor& t, size_t element, const char* name) {
  if (!t.is_cpu() || !t.is_contiguous() || t.element_size() != element)
    throw std::runtime_error(std::string(name) + ": must be a contiguous CPU tensor of elements of " + std::to_string(element) + " bytes");
}

const berth::Isa& isa_named(const std::string& name) {
  if (name.empty()) return berth::select_isa();
  for (const berth::Isa* isa : berth::all_isas())
    if (name == isa->name) return *isa;
  throw std::runtime_error("isa: found '" + name + "'; this build on this machine has: " + berth::available_isas());
}

// See kernels/__init__.py for the meaning of each.
void step(Tensor weights, Tensor plan, Tensor cache, Tensor batch, Tensor logits, Tensor best, int64_t threads, std::string isa) {
  require_plain(weights, 1, "weights");
  require_plain(plan, 8, "plan");
  require_plain(cache, 1, "cache");
  require_plain(batch, 4, "batch");
  require_plain(logits, 4, "logits");
  require_plain(best, 4, "best");
  require(threads >= 1 && threads <= 1024, "threads: must be 1 to 1024");
  berth::Model model(static_cast<const int64_t*>(plan.const_data_ptr()), plan.numel(), static_cast<const uint8_t*>(weights.const_data_ptr()),
                           weights.numel());
  const int64_t per_block = model.layers * model.kv_block_bytes(), num_blocks = cache.numel() / per_block;
  require(cache.numel() == num_blocks * per_block, "cache: not a whole number of blocks");
  const berth::BatchView view(static_cast<const int32_t*>(batch.const_data_ptr()), batch.numel(), model, num_blocks);
  require(logits.numel() == view.outputs * model.output.channels, "logits: wrong size");
  require(best.numel() == view.outputs, "best: wrong size");
  berth::step(std::move(model), isa_named(isa), static_cast<int>(threads), view, static_cast<int8_t*>(cache.mutable_data_ptr()), num_blocks,
              static_cast<float*>(logits.mutable_data_ptr()), static_cast<int32_t*>(best.mutable_data_ptr()));
}

// out[r][c] = values[r] . channel c of packed [channels / 16][depth / 4][16][4], integers: for tests of the instruction sets.
void dots(Tensor packed, Tensor values, Tensor out, bool positive, std::string isa) {
  require_plain(packed, 1, "packed");
  require_plain(values, 1, "values");
  require_plain(out, 4, "out");
  const int64_t rows = values.size(0), depth = values.size(1), channels = packed.numel() / (depth > 0 ? depth : 1);
  require(depth > 0 && depth % 4 == 0 && channels % berth::kPanel == 0 && packed.numel() == channels * depth, "packed: wrong size");
  require(out.numel() == rows * channels, "out: wrong size");
  const auto* weights = static_cast<const int8_t*>(packed.const_data_ptr());
  const auto* a = static_cast<const int8_t*>(values.const_data_ptr());
  auto* to = static_cast<int32_t*>(out.mutable_data_ptr());
  std::vector<uint8_t> magnitudes(static_cast<size_t>(rows * depth));
  std::vector<int32_t> biases(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows * depth; ++i) {
    magnitudes[static_cast<size_t>(i)] = static_cast<uint8_t>(a[i] < 0 ? -a[i] : a[i]);
    biases[static_cast<size_t>(i / depth)] -= 128 * a[i];
  }
  const berth::Isa& set = isa_named(isa);
  for (int64_t panel = 0; panel < channels / berth::kPanel; ++panel)
    for (int64_t row = 0; row < rows; row += set.dot_rows) {
      const int n = static_cast<int>(std::min<int64_t>(rows - row, set.dot_rows));
      alignas(64) int32_t sums[berth::kMostRows * berth::kPanel];
      const int8_t* w = weights + panel * depth * berth::kPanel;
      if (positive)
        set.dot_positive(w, depth, a + row * depth, depth, n, nullptr, sums);
      else
        set.dot(w, depth, {a + row * depth, magnitudes.data() + row * depth, biases.data() + row, depth}, n, nullptr, sums);
      for (int r = 0; r < n; ++r)
        for (int c = 0; c < berth::kPanel; ++c) to[(row + r) * channels + panel * berth::kPanel + c] = sums[r * berth::kPanel + c];
    }
}

// Reads all of `bytes` once with `threads` threads of the pool, as a step reads its weights; their sum, so that nothing is left out.
int64_t read_bytes(Tensor bytes, int64_t threads) {
  require_plain(bytes, 1, "bytes");
  require(threads >= 1 && threads <= 1024, "threads: must be 1 to 1024");
  constexpr int64_t kPiece = 1 << 17;
  const auto* words = static_cast<const uint64_t*>(bytes.const_data_ptr());
  const int64_t count = bytes.numel() / 8, each = kPiece / 8;
  std::atomic<uint64_t> total{0};
  berth::Pool::get(static_cast<int>(threads)).run([=, &total](berth::Member& team) {
    team.phase((count + each - 1) / each, [=, &total](int64_t piece) {
      uint64_t sums[8] = {};
      const int64_t first = piece * each, last = std::min(first + each, count);
      int64_t i = first;
      for (; i + 8 <= last; i += 8)
        for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
      for (; i < last; ++i) sums[0] += words[i];
      for (const uint64_t sum : sums) total.fetch_add(sum, std::memory_order_relaxed);
    });
  });
  return static_cast<int64_t>(total.load());
}

std::string isas() { return berth::available_isas(); }
std::string selected_isa() { return berth::select_isa().name; }

}  // namespace

STABLE_TORCH_LIBRARY(berth, m) {
  m.def("step(Tensor weights, Tensor plan, Tensor(a!) cache, Tensor batch, Tensor(b!) logits, Tensor(c!) best, int threads, str isa) -> ()");
  m.def("dots(Tensor packed, Tensor values, Tensor(a!) out, bool positive, str isa) -> ()");
  m.def("read_bytes(Tensor bytes, int threads) -> int");
  m.def("isas() -> str");
  m.def("selected_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(berth, CPU, m) {
  m.impl("step", TORCH_BOX(&step));
  m.impl("dots", TORCH_BOX(&dots));
  m.impl("read_bytes", TORCH_BOX(&read_bytes));
}

STABLE_TORCH_LIBRARY_IMPL(berth, CompositeExplicitAutograd, m) {
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("selected_isa", TORCH_BOX(&selected_isa));
}
