// AMX, for the many rows of a prompt: tiles of 16 rows x 64 of depth by 64 of depth x 16 channels; a unit of a rotated model is four of them.
// The packed layout is a tile's already: 16 lines of 64 bytes.  Few rows, and depths that are not multiples of 64, run on VNNI.
#include <sys/syscall.h>
#include <unistd.h>

#include "vnni.h"

namespace berth {
namespace {

constexpr int kFewestRows = 4;
constexpr int kAmxRows = 16;
constexpr int64_t kDeep = 64;                            // of a tile of weights
constexpr int64_t kTileBytes = kDeep * kPanel;           // which lie one after the other
constexpr int64_t kTilesAhead = 8;                       // of weights that are read in order

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

thread_local uint64_t configured = 0;  // rows of this thread's tiles, a byte each; 0: it holds none

// Tiles of so many rows, each of 64 bytes.  They stay from call to call, until `finish`: configuring takes 0.1 us.
inline void configure(const int (&rows)[8]) {
  uint64_t wanted = 0;
  for (const int n : rows) wanted = wanted << 8 | static_cast<uint64_t>(n);
  if (wanted == configured) return;
  configured = wanted;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(rows[tile]);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));  // GCC 12's _tile_loadconfig says that it reads 8 bytes, and loses the rest
}

// Rows x panels.  Some tiles are sums [rows][16 channels], as many products in flight: a product's result comes 52 cycles later, the next one
// starts after 16.  Of the others some are activations [rows][64 deep], some weights [64 deep][16 channels].
struct Block {
  const Matrix& m;
  const Activations& a;
  int64_t panel, row, rows;
  float* out;
  int64_t stride;
  bool add;
};

// What a block of two panels asks for after each of four products of a tile of depth.
struct Asks {
  const int8_t* ahead;  // weights that will be read later, in their order; or null: those that this block reads some tiles later
  int64_t bytes;        // of `ahead`
};

// Adds the sums of a unit, integers `dots` [rows][16 channels], to the floats before them, or writes the result after the last unit.
// The order of operations is that of tile in body.h: integers over a unit, then floats unit by unit.
inline void settle(const Block& b, int64_t panel, int64_t row_tile, int64_t unit, bool last, const int32_t* dots, float* sums) {
  const int rows = static_cast<int>(b.rows - row_tile * kAmxRows < kAmxRows ? b.rows - row_tile * kAmxRows : kAmxRows);
  const uint16_t* scales = b.m.scales + (b.panel + panel) * b.m.panel_scales() + unit * b.a.unit / b.m.group * kPanel;
  const __m512 scale = bf16_scales(scales);
  const auto sum = [&](int r) {
    const __m512 before = unit == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPanel);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots + r * kPanel)), scale, before);
  };
  if (!last) {
    for (int r = 0; r < rows; ++r) _mm512_store_ps(sums + r * kPanel, sum(r));
    return;
  }
  float* to = b.out + row_tile * kAmxRows * b.stride + panel * kPanel;
  const float* row_scales = b.a.scales + b.row + row_tile * kAmxRows;
  for (int r = 0; r < rows; ++r, to += b.stride) {
    const __m512 scaled = _mm512_mul_ps(sum(r), _mm512_set1_ps(row_scales[r]));
    _mm512_storeu_ps(to, b.add ? _mm512_add_ps(_mm512_loadu_ps(to), scaled) : scaled);
  }
}

// Where it stands among tiles' instructions: GCC moves a plain prefetch past them.
inline void ask_for(const int8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) asm volatile("prefetcht1 %0" ::"m"(from[i]));
}

// Asks for weights after products, a part each: in one go they would keep the loads of tiles waiting.
class Asking {
 public:
  Asking(const Block& b, const Asks& asks) : asks_(asks), panel_bytes_(b.m.panel_bytes()), tiles_(b.a.depth / kDeep) {}
  // Where this tile of depth begins, whose weights these are.
  void tile(int64_t t, const int8_t* weights) {
    const int8_t* later = weights + kTilesAhead * kTileBytes;  // past the end of its panel: of the one after the next
    next_ = asks_.ahead != nullptr ? asks_.ahead + t * 4 * asks_.bytes : t + kTilesAhead < tiles_ ? later : later + panel_bytes_;
  }
  void quarter(int i) const {
    if (asks_.ahead != nullptr)
      ask_for(next_ + i * asks_.bytes, asks_.bytes);
    else
      ask_for(next_ + i / 2 * panel_bytes_ + i % 2 * kTileBytes / 2, kTileBytes / 2);
  }

 private:
  const Asks asks_;
  const int64_t panel_bytes_, tiles_;
  const int8_t* next_ = nullptr;
};

// Rows of two or three tiles by two panels: sums of row tile i and panel j are in tile 2i + j.  multiply(w, x, ask) adds the products of a
// tile of depth: w the first panel's weights, x the first rows' activations, ask(0) to ask(3) what is asked for between them.
template <int RowTiles, class Multiply>
inline __attribute__((always_inline)) void two_panels(const Block& b, const Asks& asks, Multiply&& multiply) {
  alignas(64) int32_t dots[2 * RowTiles][kAmxRows * kPanel];
  alignas(64) float sums[2 * RowTiles][kAmxRows * kPanel];
  const int64_t depth = b.a.depth, tiles = depth / kDeep, unit_tiles = b.a.unit / kDeep;
  const int8_t *weights = b.m.weights + b.panel * b.m.panel_bytes(), *values = b.a.values + b.row * depth;
  Asking asking(b, asks);
  const auto ask = [&](int i) { asking.quarter(i); };
  for (int64_t first = 0, unit = 0; first < tiles; first += unit_tiles, ++unit) {
    const int64_t end = first + unit_tiles < tiles ? first + unit_tiles : tiles;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if constexpr (RowTiles == 3) {
      _tile_zero(4);
      _tile_zero(5);
    }
    for (int64_t t = first; t < end; ++t) {
      const int8_t* w = weights + t * kTileBytes;
      asking.tile(t, w);
      multiply(w, values + t * kDeep, ask);
    }
    _tile_stored(0, dots[0], 64);
    _tile_stored(1, dots[1], 64);
    _tile_stored(2, dots[2], 64);
    _tile_stored(3, dots[3], 64);
    if constexpr (RowTiles == 3) {
      _tile_stored(4, dots[4], 64);
      _tile_stored(5, dots[5], 64);
    }
    for (int i = 0; i < 2 * RowTiles; ++i) settle(b, i % 2, i / 2, unit, end == tiles, dots[i], sums[i]);
  }
}

// 17 to 32 rows: each tile that is loaded is used twice.  Tiles 4 and 5 are activations, 6 and 7 weights.
void square_block(const Block& b, const Asks& asks) {
  const int64_t depth = b.a.depth, panel_bytes = b.m.panel_bytes();
  two_panels<2>(b, asks, [&](const int8_t* w, const int8_t* x, auto&& ask) __attribute__((always_inline)) {
    _tile_loadd(4, x, depth);
    _tile_loadd(6, w, 64);
    _tile_dpbssd(0, 4, 6);
    ask(0);
    _tile_loadd(7, w + panel_bytes, 64);
    _tile_dpbssd(1, 4, 7);
    ask(1);
    _tile_loadd(5, x + kAmxRows * depth, depth);
    _tile_dpbssd(2, 5, 6);
    ask(2);
    _tile_dpbssd(3, 5, 7);
    ask(3);
  });
}

// 33 to 48 rows: six products in flight.  Tile 6 is weights, 7 activations.
void tall_block(const Block& b, const Asks& asks) {
  const int64_t depth = b.a.depth, panel_bytes = b.m.panel_bytes();
  two_panels<3>(b, asks, [&](const int8_t* w, const int8_t* x, auto&& ask) __attribute__((always_inline)) {
    _tile_loadd(6, w, 64);
    _tile_loadd(7, x, depth);
    _tile_dpbssd(0, 7, 6);
    ask(0);
    _tile_loadd(7, x + kAmxRows * depth, depth);
    _tile_dpbssd(2, 7, 6);
    ask(1);
    _tile_loadd(7, x + 2 * kAmxRows * depth, depth);
    _tile_dpbssd(4, 7, 6);
    _tile_loadd(6, w + panel_bytes, 64);
    ask(2);
    _tile_dpbssd(5, 7, 6);
    _tile_loadd(7, x + kAmxRows * depth, depth);
    _tile_dpbssd(3, 7, 6);
    ask(3);
    _tile_loadd(7, x, depth);
    _tile_dpbssd(1, 7, 6);
  });
}

// Up to 16 rows by one panel, for weights that are read once, in order.
void stream_block(const Block& b) {
  alignas(64) int32_t dots[kAmxRows * kPanel];
  alignas(64) float sums[kAmxRows * kPanel];
  const int64_t depth = b.a.depth, tiles = depth / kDeep, unit_tiles = b.a.unit / kDeep;
  const int8_t *weights = b.m.weights + b.panel * b.m.panel_bytes(), *values = b.a.values + b.row * depth;
  for (int64_t first = 0, unit = 0; first < tiles; first += unit_tiles, ++unit) {
    const int64_t end = first + unit_tiles < tiles ? first + unit_tiles : tiles;
    _tile_zero(0);
    for (int64_t t = first; t < end; ++t) {
      _tile_loadd(4, values + t * kDeep, depth);
      _tile_stream_loadd(6, weights + t * kTileBytes, 64);  // not again: activations stay in L1
      _tile_dpbssd(0, 4, 6);
      ask_for(weights + (t + kTilesAhead) * kTileBytes, kTileBytes);
    }
    _tile_stored(0, dots, 64);
    settle(b, 0, 0, unit, end == tiles, dots, sums);
  }
}

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  if (rows < kFewestRows || m.bits != 8 || !a.row_scale || a.unit % kDeep != 0 || a.depth % kDeep != 0)
    return vnni_matmul(m, first, last, a, rows, out, stride, add);
  const int64_t tiles = (rows + kAmxRows - 1) / kAmxRows, blocks = tiles / 2;
  const auto block = [&](int64_t panel, int64_t row, int64_t n) {
    return Block{m, a, panel, row, n, out + row * stride + (panel - first) * kPanel, stride, add};
  };
  int64_t panel = first;
  if (blocks > 0) {
    configure({16, 16, 16, 16, 16, 16, 16, 16});
    // several blocks each ask for their part of the next two panels, so that they are there when they are wanted
    const int64_t each = (kTileBytes / 2 / blocks + 63) / 64 * 64, part = 4 * each * (a.depth / kDeep), both = 2 * m.panel_bytes();
    for (; panel + 2 <= last; panel += 2)
      for (int64_t i = 0, row = 0; i < blocks; ++i) {
        const bool tall = i == 0 && tiles % 2 != 0, more = (panel + 4) * kPanel <= m.channels && i * part < both;
        const int64_t most = (tall ? 3 : 2) * kAmxRows, n = rows - row < most ? rows - row : most;
        const Asks asks{blocks == 1 ? nullptr : m.weights + (panel + 2) * m.panel_bytes() + i * part, more ? each : 0};
        tall ? tall_block(block(panel, row, n), asks) : square_block(block(panel, row, n), asks);
        row += n;
      }
  }
  if (panel == last) return;
  for (int64_t row = 0; row < rows; row += kAmxRows) {  // few rows, or the panel that is left
    const int64_t n = rows - row < kAmxRows ? rows - row : kAmxRows;
    const int some = static_cast<int>(n);
    configure({some, some, some, some, some, 16, 16, 16});
    for (int64_t i = panel; i < last; ++i) stream_block(block(i, row, n));
  }
}

void finish() {
  if (configured != 0) _tile_release();  // a thread that holds tiles is slow to switch
  configured = 0;
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_ATTEND
#define BERTH_OWN_FINISH
#include "body.h"

namespace berth {
namespace {

constexpr int kFewestQueries = 9;

// One tile of keys is a block of 16 tokens, 64 dims; one of values is 64 tokens, 16 dims, which four blocks hold: they are gathered.
// All tiles but those of keys and values (6, 7) have as many rows as there are queries: tiles 0, 2, 4 the first 16, 1, 3, 5 the others, or,
// where 16 tiles' rows are enough, as many as 0.  So one configuration serves scores and sums.
class TiledChunk : public Chunk {
 public:
  using Chunk::Chunk;

  void run() {
    const int rows = static_cast<int>(c.rows), first = rows < kAmxRows ? rows : kAmxRows, second = rows > kAmxRows ? rows - kAmxRows : rows;
    configure({first, second, first, second, first, second, 16, 16});
    // A third of the next chunk's lines is asked for in each of the three parts: as evenly in time as can be.
    const int64_t third = c.next_blocks * kv_head_bytes(c.head_dim) / 64 / 3;
    asks_ = third / (padded / 2) + 1;
    if (rows > kAmxRows)
      score_many();
    else
      score_few();
    asks_ = third / (3 * c.rows) + 1;
    soften([this] { ask(); });
    part([this] { ask(); });
    asks_ = third / (padded / 4 * c.head_dim / kPanel) + 1;
    if (rows > kAmxRows)
      blend_many();
    else
      blend_few();
  }

 private:
  // Asks for the next lines of the chunk that comes next, in the order of its memory.
  void ask() {
    for (int64_t i = 0; i < asks_; ++i, at_ += 64) {
      if (at_ == last_) {
        if (block_ >= c.next_blocks) return;
        at_ = after(block_++);
        last_ = at_ + kv_head_bytes(c.head_dim);
      }
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
    }
  }

  // Where they are multiplied at once: a whole chunk of values would push scores out of L1.  64 tokens are four blocks.
  void gather(int64_t t, int64_t dim, int8_t* to) {
#pragma GCC unroll 4
    for (int64_t b = 0; b < 4; ++b, to += kPanel * kPanel) {
      const int8_t* from = block[4 * t + b] + (c.head_dim + dim) * kPanel;
#pragma GCC unroll 4
      for (int64_t line = 0; line < kPanel * kPanel; line += 64) _mm512_store_si512(to + line, _mm512_load_si512(from + line));
    }
  }

  // Two blocks at a time: a product's result comes late.
  void score_few() {
    for (int64_t b = 0; b < padded; b += 2) {
      _tile_zero(1);
      _tile_zero(3);
      for (int64_t dim = 0; dim < c.head_dim; dim += kDeep) {
        _tile_loadd(0, c.values + dim, c.head_dim);
        _tile_loadd(6, block[b] + dim * kPanel, 64);
        _tile_loadd(7, block[b + 1] + dim * kPanel, 64);
        _tile_dpbssd(1, 0, 6);
        _tile_dpbssd(3, 0, 7);
      }
      ask();
      _tile_stored(1, dots[0] + b * kPanel, kWidth * 4);
      _tile_stored(3, dots[0] + (b + 1) * kPanel, kWidth * 4);
    }
  }
  void score_many() {
    for (int64_t b = 0; b < padded; b += 2) {
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      _tile_zero(5);
      for (int64_t dim = 0; dim < c.head_dim; dim += kDeep) {
        _tile_loadd(0, c.values + dim, c.head_dim);
        _tile_loadd(1, c.values + kAmxRows * c.head_dim + dim, c.head_dim);
        _tile_loadd(6, block[b] + dim * kPanel, 64);
        _tile_loadd(7, block[b + 1] + dim * kPanel, 64);
        _tile_dpbssd(2, 0, 6);
        _tile_dpbssd(3, 1, 6);
        _tile_dpbssd(4, 0, 7);
        _tile_dpbssd(5, 1, 7);
      }
      ask();
      _tile_stored(2, dots[0] + b * kPanel, kWidth * 4);
      _tile_stored(3, dots[kAmxRows] + b * kPanel, kWidth * 4);
      _tile_stored(4, dots[0] + (b + 1) * kPanel, kWidth * 4);
      _tile_stored(5, dots[kAmxRows] + (b + 1) * kPanel, kWidth * 4);
    }
  }

  static constexpr int64_t kStride = 2 * kWidth;  // from a row's high plane to the next one's; its low plane is between
  void blend_few() {  // 32 dims at a time
    alignas(64) int32_t sums[4][kAmxRows * kPanel];
    for (int64_t dim = 0; dim < c.head_dim; dim += 2 * kPanel) {
      _tile_zero(1);
      _tile_zero(3);
      _tile_zero(4);
      _tile_zero(5);
      for (int64_t t = 0; t < padded / 4; ++t) {
        int8_t *values = values_[t % 2], *later = values + kTileBytes;
        gather(t, dim, values), ask(), gather(t, dim + kPanel, later), ask();
        _tile_loadd(0, planes[0] + t * kDeep, kStride);
        _tile_loadd(6, values, 64);
        _tile_dpbssd(1, 0, 6);
        _tile_loadd(7, later, 64);
        _tile_dpbssd(3, 0, 7);
        _tile_loadd(2, planes[1] + t * kDeep, kStride);
        _tile_dpbssd(4, 2, 6);
        _tile_dpbssd(5, 2, 7);
      }
      _tile_stored(1, sums[0], 64);
      _tile_stored(3, sums[1], 64);
      _tile_stored(4, sums[2], 64);
      _tile_stored(5, sums[3], 64);
      for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t i = 0; i < 2; ++i) blend(r, dim + i * kPanel, sums[i] + r * kPanel, sums[2 + i] + r * kPanel);
    }
  }
  void blend_many() {
    alignas(64) int32_t sums[2][2 * kAmxRows * kPanel];
    for (int64_t dim = 0; dim < c.head_dim; dim += kPanel) {
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      _tile_zero(5);
      for (int64_t t = 0; t < padded / 4; ++t) {
        const int8_t* p = planes[0] + t * kDeep;
        gather(t, dim, values_[t % 2]), ask();
        _tile_loadd(6, values_[t % 2], 64);
        _tile_loadd(0, p, kStride);
        _tile_dpbssd(2, 0, 6);
        _tile_loadd(1, p + kAmxRows * kStride, kStride);
        _tile_dpbssd(3, 1, 6);
        _tile_loadd(0, p + kWidth, kStride);
        _tile_dpbssd(4, 0, 6);
        _tile_loadd(1, p + kWidth + kAmxRows * kStride, kStride);
        _tile_dpbssd(5, 1, 6);
      }
      _tile_stored(2, sums[0], 64);
      _tile_stored(3, sums[0] + kAmxRows * kPanel, 64);
      _tile_stored(4, sums[1], 64);
      _tile_stored(5, sums[1] + kAmxRows * kPanel, 64);
      for (int64_t r = 0; r < c.rows; ++r) blend(r, dim, sums[0] + r * kPanel, sums[1] + r * kPanel);
    }
  }

  alignas(64) int8_t values_[2][2 * kTileBytes];
  int64_t asks_ = 0, block_ = 0;  // lines at once; of the next chunk
  const int8_t *at_ = nullptr, *last_ = nullptr;
};

static_assert(kAttentionRows == 2 * kAmxRows, "the tiles of a chunk");

void attend(const AttentionChunk& c) {
  if (c.rows >= kFewestQueries && c.head_dim % kDeep == 0)
    TiledChunk(c).run();
  else
    Chunk(c).run();
}

}  // namespace

const Isa amx_isa = BERTH_ISA_TABLE("amx");

// Linux gives a process the tile registers only if it asks (arch_prctl(2)): ARCH_REQ_XCOMP_PERM for XTILEDATA.
bool amx_permitted() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

}  // namespace berth
