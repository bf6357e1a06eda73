// Does every instruction set that can run here give the scalar set's bits?  Run by test_arm_kernels.py under qemu, and natively.
//
//   kernels_check sets          names of the sets, best first, and the one that is selected (BERTH_ISA overrides)
//   kernels_check digest        a digest of the scalar set's results on fixed inputs, the same on every processor
//   kernels_check compare SET   compares SET with scalar; prints what differs, exits 1 if anything does
//   kernels_check unchecked SET the same without asking whether the processor has it
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "isa.h"
#include "step_check.h"

namespace {

using berth::Activations;
using berth::Isa;
using berth::kPanel;
using berth::Matrix;
using check::Array;
using check::below;
using check::expect_same;
using check::uniform;

bool is_x86(const Isa& isa) { return isa.name[0] == 'a'; }  // those read biases, where the others write 0

enum class Values { random, ends, top, bottom };  // anything; -127 or 127; all 127; rows of 127 by weights of -127

int8_t value(Values kind, int side) {
  switch (kind) {
    case Values::random: return static_cast<int8_t>(below(255) - 127);
    case Values::ends: return below(2) ? 127 : -127;
    case Values::top: return 127;
    default: return side == 0 ? 127 : -127;
  }
}

// -- dot products ---------------------------------------------------------------------------------------------------------------------

void compare_dots(const Isa& a, const Isa& b) {
  for (const int64_t depth : {4, 8, 12, 16, 20, 32, 44, 64, 80, 128, 260})
    for (int rows = 1; rows <= b.dot_rows; ++rows)
      for (const Values kind : {Values::random, Values::ends, Values::bottom}) {
        const int64_t stride = depth + below(4) * 4;
        Array<int8_t> panel(depth * kPanel), values(rows * stride), positive(rows * stride);
        Array<uint8_t> magnitudes(rows * stride);
        Array<int32_t> biases(rows);
        for (int64_t i = 0; i < panel.size(); ++i) panel[i] = value(kind, 0);
        for (int64_t i = 0; i < values.size(); ++i) {
          values[i] = value(kind, 1);
          magnitudes[i] = static_cast<uint8_t>(values[i] < 0 ? -values[i] : values[i]);
          positive[i] = static_cast<int8_t>(magnitudes[i]);
        }
        for (int r = 0; r < rows; ++r) {
          biases[r] = 0;
          for (int64_t k = 0; k < depth; ++k) biases[r] -= 128 * values[r * stride + k];
        }
        const int8_t* ahead = below(2) ? nullptr : reinterpret_cast<const int8_t*>(0x10);  // a hint, to any address
        const berth::DotRows rows_of{values.get(), magnitudes.get(), biases.get(), stride};
        const auto run = [&](const Isa& isa, bool signed_, const Array<int32_t>& out) {
          for (int r = 0; r < rows; r += isa.dot_rows) {
            const int n = rows - r < isa.dot_rows ? rows - r : isa.dot_rows;
            const berth::DotRows part{rows_of.values + r * stride, rows_of.magnitudes + r * stride, rows_of.biases + r, stride};
            if (signed_)
              isa.dot(panel.get(), depth, part, n, ahead, out.get() + r * kPanel);
            else
              isa.dot_positive(panel.get(), depth, positive.get() + r * stride, stride, n, ahead, out.get() + r * kPanel);
          }
        };
        for (const bool signed_ : {true, false}) {
          Array<int32_t> expected(rows * kPanel), found(rows * kPanel);
          run(a, signed_, expected), run(b, signed_, found);
          expect_same("dot, depth " + std::to_string(depth) + ", rows " + std::to_string(rows), expected, found);
        }
      }
}

// -- matrices -------------------------------------------------------------------------------------------------------------------------

struct Case {
  int bits;
  bool row_scale;
  int64_t panels, depth, unit, group, rows;
  Values kind;
  bool minima = false;
  std::string name() const {
    return std::to_string(bits) + (minima ? " bits with minima, " : " bits, ") + (row_scale ? "row scale" : "unit scales") + ", panels " + std::to_string(panels) +
           ", depth " + std::to_string(depth) + ", unit " + std::to_string(unit) + ", group " + std::to_string(group) + ", rows " +
           std::to_string(rows);
  }
};

struct Rows {
  Rows(int64_t rows, int64_t depth, int64_t unit, bool row_scale)
      : values(rows * depth), eased(row_scale ? values.size() : 0), magnitudes(row_scale ? 0 : values.size()),
        biases(rows * ((depth + unit - 1) / unit)), heavy(row_scale ? biases.size() : 0), scales(row_scale ? rows : biases.size()),
        sums(row_scale ? 0 : biases.size()),
        view{values.get(), magnitudes.get(), eased.get(), heavy.get(), biases.get(), scales.get(), sums.get(), depth, unit, row_scale} {}
  Array<int8_t> values, eased;
  Array<uint8_t> magnitudes;
  Array<int32_t> biases;
  Array<uint64_t> heavy;
  Array<float> scales, sums;
  Activations view;
};

void compare_quantize(const std::string& name, const Isa& a, const Isa& b, const Case& c, const float* x, const float* gain,
                      const Rows& expected, const Rows& found) {
  for (int64_t r = 0; r < c.rows; ++r) {
    a.quantize(x + r * c.depth, 0.75f, gain, expected.view, r);
    b.quantize(x + r * c.depth, 0.75f, gain, found.view, r);
  }
  expect_same("quantize: values, " + name, expected.values, found.values);
  if (!is_x86(b)) expect_same("quantize: biases, " + name, expected.biases, found.biases);
  expect_same("quantize: scales, " + name, expected.scales, found.scales);
  expect_same("quantize: sums, " + name, expected.sums, found.sums);
}

void compare_matmul(const Isa& a, const Isa& b, const Case& c) {
  if (is_x86(b) && c.row_scale && c.unit > 256) return;  // more than a model may have
  if (c.bits == 4 && !c.minima) {
    Case other = c;
    other.minima = true;
    compare_matmul(a, b, other);
  }
  const int64_t groups = (c.depth + c.group - 1) / c.group;
  Array<int8_t> weights(c.panels * c.depth * kPanel * c.bits / 8);
  Array<uint16_t> scales(c.panels * groups * kPanel * (c.minima ? 2 : 1));
  Array<float> x(c.rows * c.depth), gain(c.depth);
  for (int64_t i = 0; i < weights.size(); ++i)
    weights[i] = c.bits == 4 ? static_cast<int8_t>(c.kind == Values::random ? below(256) : 255) : value(c.kind, 0);
  for (int64_t i = 0; i < scales.size(); ++i)  // bf16 in +-[2^-7, 2^-5), fp16 in +-[2^-7, 2^-5)
    scales[i] = static_cast<uint16_t>(c.bits == 8 ? 0x3C00 + below(256) + below(2) * 0x8000 : 0x2000 + below(2048) + below(2) * 0x8000);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = c.kind == Values::random ? uniform() * 3.0f : 2.0f * value(c.kind, 1);
  for (int64_t i = 0; i < c.depth; ++i) gain[i] = 1.0f + uniform();
  const Rows rows(c.rows, c.depth, c.unit, c.row_scale), same(c.rows, c.depth, c.unit, c.row_scale);  // as each set wants them
  compare_quantize(c.name(), a, b, c, x.get(), c.row_scale || c.unit > 64 || c.kind != Values::random ? nullptr : gain.get(), rows, same);
  const Matrix m{c.bits, c.minima, weights.get(), scales.get(), c.panels * kPanel, c.depth, c.group};
  const int64_t first = c.panels > 2 ? 1 : 0, stride = c.panels * kPanel + 8;
  for (const bool add : {false, true}) {
    Array<float> expected(c.rows * stride), found(c.rows * stride);
    for (int64_t i = 0; i < expected.size(); ++i) expected[i] = found[i] = uniform();
    a.matmul(m, first, c.panels, rows.view, c.rows, expected.get(), stride, add);
    b.matmul(m, first, c.panels, same.view, c.rows, found.get(), stride, add);
    expect_same("matmul, " + c.name() + (add ? ", added" : ""), expected, found);
  }
}

void compare_matrices(const Isa& a, const Isa& b) {
  for (int64_t rows = 1; rows <= 17; ++rows) {  // odd numbers of units, the last one shorter; depths that are multiples of 4 or 8 alone
    compare_matmul(a, b, {8, true, 2, 260, 260, 260, rows, Values::random});
    compare_matmul(a, b, {8, true, 2, 1100, 1100, 1100, rows, Values::random});
    compare_matmul(a, b, {8, true, 2, 1100, 256, 512, rows, Values::random});
    compare_matmul(a, b, {8, true, 2, 92, 24, 72, rows, Values::random});
    compare_matmul(a, b, {8, false, 3, 84, 32, 32, rows, Values::random});
    compare_matmul(a, b, {8, false, 1, 300, 64, 128, rows, Values::random});
    compare_matmul(a, b, {8, false, 1, 76, 24, 72, rows, Values::random});
    compare_matmul(a, b, {4, false, 3, 88, 32, 32, rows, Values::random});
    compare_matmul(a, b, {4, false, 1, 296, 128, 256, rows, Values::random});
  }
  for (const int64_t rows : {20, 35, 67, 80}) {
    compare_matmul(a, b, {8, true, 1, 516, 128, 516, rows, Values::random});
    compare_matmul(a, b, {8, false, 2, 68, 32, 64, rows, Values::random});
    compare_matmul(a, b, {4, false, 2, 72, 32, 64, rows, Values::random});
  }
  for (const Values kind : {Values::ends, Values::top, Values::bottom})  // the largest sums: around 2^22 with units of 256
    for (const int64_t rows : {1, 3, 4, 16}) {
      for (const int64_t unit : {256, 264, 1024}) compare_matmul(a, b, {8, true, 1, 1024, unit, 1024 / unit * unit, rows, kind});
      compare_matmul(a, b, {8, false, 1, 520, 256, 256, rows, kind});
      compare_matmul(a, b, {4, false, 1, 256, 128, 128, rows, kind});
    }
}

// -- the rest -------------------------------------------------------------------------------------------------------------------------

void compare_vectors(const Isa& a, const Isa& b) {
  for (const int64_t n : {1, 2, 4, 8, 16, 24, 64, 72, 256, 1000, 1024}) {
    Array<float> x(n), y(n), gate(n), one(n), two(n);
    for (int64_t i = 0; i < n; ++i) x[i] = uniform() * 4.0f, gate[i] = uniform() * 100.0f;
    const std::string size = std::to_string(n);
    const auto copies = [&] { std::memcpy(one.get(), x.get(), x.bytes()), std::memcpy(two.get(), x.get(), x.bytes()); };
    Array<float> scalar(1), other(1);
    scalar[0] = a.inverse_rms(x.get(), n, 1e-5f), other[0] = b.inverse_rms(x.get(), n, 1e-5f);
    expect_same("inverse_rms " + size, scalar, other);
    for (const int64_t hole : {int64_t{-1}, int64_t{0}, n / 2, n - 1}) {  // a NaN there
      copies();
      Array<float> top(1);
      top[0] = *std::max_element(x.get(), x.get() + n);
      if (hole >= 0) one[hole] = top[0] = std::numeric_limits<float>::quiet_NaN();
      scalar[0] = a.greatest(one.get(), n), other[0] = b.greatest(one.get(), n);
      expect_same("greatest " + size, top, scalar), expect_same("greatest " + size, top, other);
    }
    Array<int8_t> q(n), r(n);
    Array<uint8_t> magnitudes(n);
    Array<int32_t> bias(1), same(1);
    scalar[0] = a.quantize_head(x.get(), n, q.get(), magnitudes.get(), bias.get());
    other[0] = b.quantize_head(x.get(), n, r.get(), magnitudes.get(), same.get());
    expect_same("quantize_head " + size, q, r), expect_same("its scale", scalar, other);
    if (!is_x86(b)) expect_same("its bias", bias, same);
    if ((n & (n - 1)) == 0) {
      copies();
      a.hadamard(one.get(), n), b.hadamard(two.get(), n);
      expect_same("hadamard " + size, one, two);
    }
    if (n % 16 == 0) {
      Array<float> both(2 * n);
      for (int64_t i = 0; i < 2 * n; ++i) both[i] = uniform() * 100.0f;
      a.swiglu(both.get(), one.get(), n), b.swiglu(both.get(), two.get(), n);
      expect_same("swiglu " + size, one, two);
      copies();
      // rows of n / 16 or n: one whose later chunk is lower, equal, higher, and one that sees nothing of it
      const int64_t rows = n < 64 ? 1 : n / 16, each = n / rows;
      Array<float> later(2 * rows), state_a(2 * rows), state_b(2 * rows);
      for (int64_t r = 0; r < rows; ++r) {
        state_a[r] = state_b[r] = 0.25f, state_a[rows + r] = state_b[rows + r] = 5.0f;
        later[r] = r % 4 == 3 ? -std::numeric_limits<float>::infinity() : -2.0f + static_cast<float>(r % 4) * 2.25f;
        later[rows + r] = r % 4 == 3 ? 0.0f : 2.0f;
      }
      a.merge(state_a.get(), state_a.get() + rows, one.get(), later.get(), later.get() + rows, gate.get(), rows, each);
      b.merge(state_b.get(), state_b.get() + rows, two.get(), later.get(), later.get() + rows, gate.get(), rows, each);
      expect_same("merge " + size, one, two), expect_same("its maxima and sums", state_a, state_b);
    }
    if (n % 16 == 0) {
      copies();
      a.rotate(one.get(), gate.get(), gate.get() + n / 2, n), b.rotate(two.get(), gate.get(), gate.get() + n / 2, n);
      expect_same("rotate " + size, one, two);
    }
  }
  Array<float> ties(64), none(64);  // halves, which round to even
  Array<int8_t> q(64), r(64);
  Array<uint8_t> magnitudes(64);
  Array<int32_t> bias(1);
  for (int64_t i = 0; i < 64; ++i) ties[i] = i == 0 ? 127.0f : static_cast<float>(i - 32) + 0.5f, none[i] = 0.0f;
  for (const auto& x : {ties.get(), none.get()}) {
    a.quantize_head(x, 64, q.get(), magnitudes.get(), bias.get()), b.quantize_head(x, 64, r.get(), magnitudes.get(), bias.get());
    expect_same("ties", q, r);
  }
}

void compare_attention(const Isa& a, const Isa& b) {
  constexpr int64_t kBlocks = 20;
  for (const int64_t head_dim : {16, 48, 64, 128})
    for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 17, 32})
      for (const int64_t blocks : {1, 5, 10, 16}) {
        if (head_dim != 64 && blocks >= 10 && rows > 9) continue;
        const int64_t stride = 2 * berth::kv_head_bytes(head_dim);
        Array<int8_t> cache(kBlocks * stride), values(rows * head_dim);
        Array<uint8_t> magnitudes(rows * head_dim);
        Array<int32_t> biases(rows), table(blocks + 4);
        Array<float> scales(rows), maximum(rows), maximum_b(rows), sum(rows), sum_b(rows), out(rows * head_dim), out_b(rows * head_dim);
        Array<int64_t> ages(rows);
        const int64_t position = 256, tokens = (blocks - 1) * kPanel + 1 + below(kPanel);
        for (int64_t i = 0; i < cache.size(); ++i) cache[i] = value(Values::random, 0);
        for (int64_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(below(kBlocks));
        for (int64_t block = 0; block < kBlocks; ++block)
          for (int64_t head = 0; head < 2; ++head)
            for (int64_t i = 0; i < 2 * kPanel; ++i) {
              float scale = 0.001f + 0.01f * (uniform() + 1.0f);
              if (block % 7 == 3) scale = std::numeric_limits<float>::quiet_NaN();  // nothing was ever written there
              std::memcpy(cache.get() + block * stride + head * stride / 2 + 2 * kPanel * head_dim + 4 * i, &scale, 4);
            }
        for (int64_t i = 0; i < table.size(); ++i)
          if (table[i] % 7 == 3) table[i] = 0;
        for (int64_t i = 0; i < values.size(); ++i) {
          values[i] = value(Values::random, 1);
          magnitudes[i] = static_cast<uint8_t>(values[i] < 0 ? -values[i] : values[i]);
        }
        for (int64_t r = 0; r < rows; ++r) {
          scales[r] = 0.002f * (uniform() + 1.5f);
          ages[r] = r % 8 == 5 ? position - 3 : position + below(tokens);  // some rows see nothing of the chunk
          biases[r] = 0;
          for (int64_t k = 0; k < head_dim; ++k) biases[r] -= 128 * values[r * head_dim + k];
        }
        berth::AttentionChunk c{};
        c.cache = cache.get() + below(2) * stride / 2, c.block_stride = stride, c.table = table.get(), c.blocks = blocks;
        c.next_cache = cache.get(), c.next_table = table.get() + blocks, c.next_blocks = below(5);
        c.position = position, c.head_dim = head_dim, c.rows = rows, c.values = values.get(), c.magnitudes = magnitudes.get();
        c.biases = biases.get(), c.scales = scales.get(), c.ages = ages.get();
        c.maximum = maximum.get(), c.sum = sum.get(), c.out = out.get();
        a.attend(c);
        c.maximum = maximum_b.get(), c.sum = sum_b.get(), c.out = out_b.get();
        b.attend(c);
        const std::string name = "attend, head_dim " + std::to_string(head_dim) + ", rows " + std::to_string(rows) + ", blocks " +
                                 std::to_string(blocks);
        expect_same(name, out, out_b), expect_same("its maxima", maximum, maximum_b), expect_same("its sums", sum, sum_b);
      }
}

void compare(const Isa& a, const Isa& b) {
  compare_dots(a, b);
  compare_matrices(a, b);
  compare_vectors(a, b);
  compare_attention(a, b);
}

void compare_steps(const Isa& a, const Isa& b) {
  for (const bool rotated : {true, false})
    for (const int threads : {1, 2}) check::compare_steps(a, b, rotated, threads);
}

const Isa* find(const std::string& name, [[maybe_unused]] bool anywhere) {
  std::vector<const Isa*> sets = berth::all_isas();
#if defined(BERTH_AARCH64)
  if (anywhere) sets = {&berth::dotprod_isa, &berth::i8mm_isa, &berth::sve_isa, &berth::sve_i8mm_isa};
#endif
  for (const Isa* isa : sets)
    if (isa->name == name) return isa;
  throw std::runtime_error(name + " cannot run here; what can: " + berth::available_isas());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "sets" && argc == 2) {
      std::printf("%s\n", berth::available_isas());
      std::printf("%s\n", berth::select_isa().name);
      return 0;
    }
    if (command == "digest" && argc == 2) {
      compare(berth::scalar_isa, berth::scalar_isa);
      std::printf("%016llx\n", static_cast<unsigned long long>(check::digest));
      return 0;
    }
    if ((command == "compare" || command == "unchecked") && argc == 3) {
      const Isa& isa = *find(argv[2], command == "unchecked");
      compare(berth::scalar_isa, isa);
      compare_steps(berth::scalar_isa, isa);
      std::printf("%s: %d results compared, %d differ\n", isa.name, check::compared, check::different);
      return check::different == 0 ? 0 : 1;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  std::fprintf(stderr, "usage: kernels_check sets | digest | compare SET | unchecked SET\n");
  return 2;
}
