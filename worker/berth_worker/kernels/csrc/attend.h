// Attention of every instruction set, written once: the second half of body.h, which includes it.
namespace berth {
namespace {

constexpr float kNothing = -__builtin_inff();
constexpr int64_t kBlocksAhead = 3;

#if !defined(BERTH_OWN_BLEND)
// out[r][c] = sum over the 16 tokens of each block of weights[r][16 block + token] * value[token][c], for 16 dims of the values; `ahead`
// as in Isa::dot, one for each block.
inline void blend_blocks(const int8_t* const* values, int64_t blocks, const int8_t* weights, int64_t stride, int rows,
                         const int8_t* const* ahead, int32_t* out) {
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(64) int32_t dots[kRows * kPanel];
    dot_positive(values[b], kPanel, weights + b * kPanel, stride, rows, ahead == nullptr ? nullptr : ahead[b], b == 0 ? out : dots);
    if (b > 0)
      for (int i = 0; i < rows * kPanel; ++i) out[i] += dots[i];
  }
}
#endif

// Attention of a chunk, for every row: scores from integer dots of the quantized query and keys; p = exp(score - maximum); the values'
// scales are folded into p, which is quantized to 14 bits with one scale a row, in two planes of 7; then integer dots with the values.
// A row's result depends on its own query and position alone: tokens after it get p = 0.
struct Chunk {
  explicit Chunk(const AttentionChunk& chunk) : c(chunk) {
    for (int64_t b = 0; b < c.blocks; ++b) block[b] = c.cache + static_cast<int64_t>(c.table[b]) * c.block_stride;
  }

  static constexpr int64_t kWidth = kChunkBlocks * kPanel;
  static constexpr float kMost = 127.0f * 128.0f;
  const AttentionChunk& c;
  const int8_t* block[kChunkBlocks];
  // Left unset: they are large, and written before they are read.
  alignas(64) float p[kAttentionRows][kWidth];            // scores, then exp(score - maximum) times the value's scale
  alignas(64) float most[kAttentionRows][kPanel];         // lane by lane, the largest score of all blocks so far
  alignas(64) int8_t planes[2 * kAttentionRows][kWidth];  // the same as 128 * one row + the next
  float scales[kAttentionRows];

  const int8_t* after(int64_t b) const { return c.cache + static_cast<int64_t>(c.table[b]) * c.block_stride; }
  // What to ask for while block b's keys (values) are in work: blocks lie anywhere, so the processor cannot guess.
  const int8_t* after_keys(int64_t b) const {
    b += kBlocksAhead;
    return b < c.blocks ? block[b] : block[b - c.blocks < c.blocks ? b - c.blocks : 0] + kPanel * c.head_dim;
  }
  const int8_t* after_values(int64_t b) const {
    b += kBlocksAhead;
    return b < c.blocks ? block[b] + kPanel * c.head_dim : after(b < c.blocks + c.blocks_after ? b : c.blocks - 1);
  }

  void run() {
    for (int64_t b = 0; b < c.blocks; ++b) score(b);
    soften();
    blend();
  }

  void score(int64_t b) {
    const int8_t* ahead = after_keys(b);
    const int8_t* keys = block[b];
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int32_t dots[kRows * kPanel];
      dot(keys, c.head_dim, {c.values + row * c.head_dim, c.magnitudes + row * c.head_dim, c.biases + row, c.head_dim}, n,
          row == 0 ? ahead : nullptr, dots);
      score(b, row, n, dots);
    }
  }

  // Scores of a block for n rows, from their dots [n][16] with the keys.
  void score(int64_t b, int64_t row, int64_t n, const int32_t* dots) {
    const float *key_scales = reinterpret_cast<const float*>(block[b] + 2 * kPanel * c.head_dim), *row_scales = c.scales + row;
    Floats keys[kParts];
    for (int part = 0; part < kParts; ++part) keys[part] = load(key_scales + part * kLanes);
    float *to = p[row] + b * kPanel, *high = most[row];
    const int64_t *ages = c.ages + row, first = c.position + b * kPanel;
    for (int64_t r = 0; r < n; ++r, dots += kPanel, to += kWidth, high += kPanel) {
      const float scale = row_scales[r];
      const int64_t seen = ages[r] - first + 1;  // tokens of this block that the row sees
      Floats x[kParts];
      for (int part = 0; part < kParts; ++part) store(to + part * kLanes, x[part] = to_float(dots + part * kLanes) * (scale * keys[part]));
      if (seen < kPanel) {
        for (int64_t t = seen < 0 ? 0 : seen; t < kPanel; ++t) to[t] = kNothing;
        for (int part = 0; part < kParts; ++part) x[part] = load(to + part * kLanes);
      }
      for (int part = 0; part < kParts; ++part) store(high + part * kLanes, b == 0 ? x[part] : larger(x[part], load(high + part * kLanes)));
    }
  }

  // All: the row sees every token of the chunk.  A slot that it does not see may hold any scale.
  template <bool All>
  void soften(int64_t row) {
    const float maximum = largest_of(larger(load(most[row]), load(most[row] + kPanel - kLanes)));
    Floats sums[kParts] = {}, top[kParts] = {};
    for (int64_t b = 0; b < c.blocks; ++b)
      for (int part = 0; part < kParts; ++part) {
        float* x = p[row] + b * kPanel + part * kLanes;
        const float* value_scales = reinterpret_cast<const float*>(block[b] + 2 * kPanel * c.head_dim) + kPanel;
        const Floats s = load(x), none = all(0.0f), seen = all(kNothing);
        Floats e = exponential(s - maximum), w = e * load(value_scales + part * kLanes);
        if constexpr (!All) e = choose(s, seen, e, none), w = choose(s, seen, w, none);
        sums[part] += e;
        top[part] = larger(w, top[part]);
        store(x, w);
      }
    const float largest = largest_of(larger(top[0], top[kParts - 1])), inverse = largest > 0.0f ? kMost / largest : 0.0f;
    c.maximum[row] = maximum;
    c.sum[row] = sum_of_parts(sums);
    scales[row] = largest / kMost;
    store_planes(planes[2 * row], planes[2 * row + 1], p[row], c.blocks * kPanel, inverse);
  }

  void blend() {
    const int8_t *values[kChunkBlocks], *ahead[kChunkBlocks];
    constexpr int kPairs = kRows / 2;
    for (int64_t row = 0; row < c.rows; row += kPairs) {
      const int n = static_cast<int>(c.rows - row < kPairs ? c.rows - row : kPairs);
      for (int64_t i = 0; i < c.head_dim; i += kPanel) {
        for (int64_t b = 0; b < c.blocks; ++b) {
          values[b] = block[b] + kPanel * c.head_dim + i * kPanel;
          ahead[b] = after_values(b) + i * kPanel;
        }
        alignas(64) int32_t dots[kRows * kPanel];
        blend_blocks(values, c.blocks, planes[2 * row], kWidth, 2 * n, row == 0 ? ahead : nullptr, dots);
        for (int r = 0; r < n; ++r) blend(row + r, i, dots + 2 * r * kPanel);
      }
    }
  }

  // 16 dims of a row's result, from the dots of its two planes with the values.
  void blend(int64_t row, int64_t dim, const int32_t* dots) {
    alignas(64) int32_t sums[kPanel];
    for (int i = 0; i < kPanel; ++i) sums[i] = 128 * dots[i] + dots[kPanel + i];
    for (int i = 0; i < kPanel; i += kLanes) store(c.out + row * c.head_dim + dim + i, to_float(sums + i) * scales[row]);
  }

  void soften() {
    const int64_t last = c.position + c.blocks * kPanel - 1;
    for (int64_t row = 0; row < c.rows; ++row)
      if (c.ages[row] >= last) {
        soften<true>(row);
      } else if (c.ages[row] >= c.position) {
        soften<false>(row);
      } else {  // sees nothing of this chunk
        c.maximum[row] = kNothing;
        c.sum[row] = 0.0f;
        scales[row] = 0.0f;
        __builtin_memset(planes[2 * row], 0, 2 * kWidth);
      }
  }
};

#if !defined(BERTH_OWN_ATTEND)
void attend(const AttentionChunk& c) { Chunk(c).run(); }
#endif

void merge(float* maximum, float* sum, float* out, float later_maximum, float later_sum, const float* later, int64_t n) {
  if (!(later_sum > 0.0f)) return;  // the row sees nothing of that chunk
  const float top = larger(*maximum, later_maximum);
  const float keep = exponential(*maximum - top), take = exponential(later_maximum - top);
  *maximum = top;
  *sum = *sum * keep + later_sum * take;
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, load(out + i) * keep + load(later + i) * take);
}

}  // namespace
}  // namespace berth
