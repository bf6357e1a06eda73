// Attention of every instruction set, written once: the second half of body.h, which includes it.
namespace berth {
namespace {

constexpr float kNothing = -__builtin_inff();

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

// Attention of a chunk, for every row: scores from integer dots of the quantized query and keys; p = 2^(score - maximum); the values'
// scales are folded into p, which is quantized to 14 bits with one scale a row, in two planes of 7; then integer dots with the values.
// A row's result depends on its own query and position alone: tokens after it get p = 0.  A set may have a part of this done its own way
// (BERTH_OWN_ATTEND, with the same bits).
struct Chunk {
  explicit Chunk(const AttentionChunk& chunk) : c(chunk), padded((chunk.blocks + 3) / 4 * 4) {
    for (int64_t b = 0; b < padded; ++b) {
      block[b] = c.cache + static_cast<int64_t>(c.table[b < c.blocks ? b : c.blocks - 1]) * c.block_stride;
      const float* scales = reinterpret_cast<const float*>(block[b] + 2 * kPanel * c.head_dim);
      for (int i = 0; i < kPanel; i += kLanes) {
        store(key_scales + b * kPanel + i, load(scales + i));
        store(value_scales + b * kPanel + i, load(scales + kPanel + i));
      }
    }
  }

  static constexpr int64_t kWidth = kChunkBlocks * kPanel;
  static constexpr float kMost = 127.0f * 128.0f;
  const AttentionChunk& c;
  const int64_t padded;  // blocks, to a multiple of 4: the last one repeated, whose tokens no row sees
  const int8_t* block[kChunkBlocks];
  // Left unset: they are large, and written before they are read.
  alignas(64) float key_scales[kWidth], value_scales[kWidth];
  alignas(64) int32_t dots[kAttentionRows][kWidth];       // of queries and keys
  alignas(64) int8_t planes[2 * kAttentionRows][kWidth];  // p times the value's scale, as 128 * one row + the next
  float scales[kAttentionRows], inverses[kAttentionRows];

  // What to ask for while block b is in work: that of the chunk that this thread takes next.  Blocks lie anywhere, so the processor cannot
  // guess, and a whole chunk ahead is early enough for any memory.
  const int8_t* after(int64_t b) const {
    return b < c.next_blocks ? c.next_cache + static_cast<int64_t>(c.next_table[b]) * c.block_stride : nullptr;
  }

  void run() {
    for (int64_t b = 0; b < c.blocks; ++b) score(b);
    clear_padding();
    soften([] {});
    part([] {});
    blend();
  }

  // Of blocks that are not there: no row sees them, but their dots are read.
  void clear_padding() {
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t b = c.blocks; b < padded; ++b) __builtin_memset(dots[row] + b * kPanel, 0, kPanel * sizeof(int32_t));
  }

  // Where block b's successor's keys are; its scales, behind keys and values, are asked for here.
  const int8_t* ask(int64_t b) const {
    const int8_t* ahead = after(b);
    if (ahead != nullptr)
      for (int64_t i = 2 * kPanel * c.head_dim; i < kv_head_bytes(c.head_dim); i += 64) __builtin_prefetch(ahead + i, 0, 2);
    return ahead;
  }

  void score(int64_t b) {
    const int8_t *ahead = ask(b), *keys = block[b];
    for (int64_t row = 0; row < c.rows; row += kRows) {
      const int n = static_cast<int>(c.rows - row < kRows ? c.rows - row : kRows);
      alignas(64) int32_t some[kRows * kPanel];
      dot(keys, c.head_dim, {c.values + row * c.head_dim, c.magnitudes + row * c.head_dim, c.biases + row, c.head_dim}, n,
          row == 0 ? ahead : nullptr, some);
      for (int64_t r = 0; r < n; ++r) __builtin_memcpy(dots[row + r] + b * kPanel, some + r * kPanel, kPanel * sizeof(int32_t));
    }
  }

  // Two passes over the scores, and `part` a third, each over all rows: within a row each needs one number of the pass before it, which
  // comes late.  `between` is called after each row of each pass.
  template <class Between>
  void soften(Between&& between) {
    for (int64_t row = 0; row < c.rows; ++row) {
      if (c.ages[row] < c.position)  // sees nothing of this chunk
        c.maximum[row] = kNothing;
      else
        c.maximum[row] = sees_all(row) ? highest<true>(row) : highest<false>(row);
      between();
    }
    for (int64_t row = 0; row < c.rows; ++row) {
      float top = 0.0f;
      if (c.ages[row] < c.position)
        c.sum[row] = 0.0f;
      else
        top = sees_all(row) ? weigh<true>(row) : weigh<false>(row);
      scales[row] = top / kMost;
      inverses[row] = top > 0.0f ? kMost / top : 0.0f;
      between();
    }
  }

  bool sees_all(int64_t row) const { return c.ages[row] >= c.position + padded * kPanel - 1; }
  // Of tokens that the row does not see, scores and p are put aside; their slots may hold any scale.  All: it sees every token.
  template <bool All>
  Floats visible(int64_t row, int64_t token, Floats x, float otherwise) const {
    return All ? x : first_lanes(c.ages[row] - c.position + 1 - token, x, otherwise);
  }
  float* row_of(int64_t row) { return reinterpret_cast<float*>(dots[row]); }  // its dots, then scores, then p times the values' scales

  // Dots become scores without the row's scale; the highest, with it.
  template <bool All>
  float highest(int64_t row) {
    Floats high[4] = {all(kNothing), all(kNothing), all(kNothing), all(kNothing)};
    for (int64_t i = 0; i < padded * kPanel; i += 4 * kLanes)
      BERTH_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t at = i + j * kLanes;
        const Floats x = visible<All>(row, at, to_float(dots[row] + at) * load(key_scales + at), kNothing);
        store(row_of(row) + at, x);
        high[j] = larger(x, high[j]);
      }
    return largest_of(larger(larger(high[0], high[1]), larger(high[2], high[3]))) * c.scales[row] + 0.0f;  // never -0
  }

  // Scores become p times the values' scales; the largest of those.
  template <bool All>
  float weigh(int64_t row) {
    Floats sums[kParts] = {}, top[4] = {};
    const Floats scale = all(c.scales[row]), lower = all(-c.maximum[row]);
    for (int64_t i = 0; i < padded * kPanel; i += 4 * kLanes)
      BERTH_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t at = i + j * kLanes;
        const Floats e = power_of_two(fused(load(row_of(row) + at), scale, lower));
        sums[j % kParts] += visible<All>(row, at, e, 0.0f);
        const Floats x = visible<All>(row, at, e * load(value_scales + at), 0.0f);
        store(row_of(row) + at, x);
        top[j] = larger(x, top[j]);
      }
    c.sum[row] = sum_of_parts(sums);
    return largest_of(larger(larger(top[0], top[1]), larger(top[2], top[3])));
  }

  // Those are rounded and parted in two planes.
  template <class Between>
  void part(Between&& between) {
    for (int64_t row = 0; row < c.rows; ++row) {
      int8_t *high = planes[2 * row], *low = planes[2 * row + 1];
      const float* x = row_of(row);
      const Floats inverse = all(inverses[row]);
      if (c.ages[row] < c.position)
        __builtin_memset(high, 0, 2 * kWidth);
      else
        for (int64_t i = 0; i < padded * kPanel; i += 4 * kLanes)
          store_planes4(high + i, low + i, load(x + i) * inverse, load(x + i + kLanes) * inverse, load(x + i + 2 * kLanes) * inverse,
                        load(x + i + 3 * kLanes) * inverse);
      between();
    }
  }

  void blend() {
    const int8_t *values[kChunkBlocks], *ahead[kChunkBlocks];
    constexpr int kPairs = kRows / 2;
    for (int64_t row = 0; row < c.rows; row += kPairs) {
      const int n = static_cast<int>(c.rows - row < kPairs ? c.rows - row : kPairs);
      const bool asks = row == 0 && c.next_blocks > 0;
      for (int64_t i = 0; i < c.head_dim; i += kPanel) {
        for (int64_t b = 0; b < c.blocks; ++b) values[b] = block[b] + kPanel * c.head_dim + i * kPanel;
        if (asks)
          for (int64_t b = 0; b < c.blocks; ++b) ahead[b] = after(b < c.next_blocks ? b : 0) + kPanel * c.head_dim + i * kPanel;
        alignas(64) int32_t sums[kRows * kPanel];
        blend_blocks(values, c.blocks, planes[2 * row], kWidth, 2 * n, asks ? ahead : nullptr, sums);
        for (int r = 0; r < n; ++r) blend(row + r, i, sums + 2 * r * kPanel, sums + (2 * r + 1) * kPanel);
      }
    }
  }

  // 16 dims of a row's result, from the dots of its weights with the values,
  void blend(int64_t row, int64_t dim, const int32_t* sums) {
    for (int i = 0; i < kPanel; i += kLanes) store(c.out + row * c.head_dim + dim + i, to_float(sums + i) * scales[row]);
  }
  // or of its two planes.
  void blend(int64_t row, int64_t dim, const int32_t* high, const int32_t* low) {
    alignas(64) int32_t sums[kPanel];
    for (int i = 0; i < kPanel; ++i) sums[i] = 128 * high[i] + low[i];
    blend(row, dim, sums);
  }
};

#if !defined(BERTH_OWN_ATTEND)
void attend(const AttentionChunk& c) { Chunk(c).run(); }
#endif

void merge(float* maximum, float* sum, float* out, const float* later_maximum, const float* later_sum, const float* later, int64_t rows,
           int64_t n) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    const int64_t some = rows - first < kLanes ? rows - first : kLanes;
    const size_t bytes = static_cast<size_t>(some) * sizeof(float);
    Floats a = {}, b = {};
    __builtin_memcpy(&a, maximum + first, bytes);
    __builtin_memcpy(&b, later_maximum + first, bytes);
    const Floats top = larger(a, b);
    alignas(64) float tops[kLanes], keep[kLanes], take[kLanes];
    store(tops, top), store(keep, power_of_two(a - top)), store(take, power_of_two(b - top));
    for (int64_t i = 0; i < some; ++i) {
      const int64_t row = first + i;
      if (!(later_sum[row] > 0.0f)) continue;  // it sees nothing of that chunk
      maximum[row] = tops[i];
      sum[row] = sum[row] * keep[i] + later_sum[row] * take[i];
      float* to = out + row * n;
      for (int64_t k = 0; k < n; k += kLanes) store(to + k, load(to + k) * keep[i] + load(later + row * n + k) * take[i]);
    }
  }
}

}  // namespace
}  // namespace berth
