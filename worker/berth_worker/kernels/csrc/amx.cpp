// AMX, for the many rows of a prompt: tiles of 16 rows x 64 of depth by 64 of depth x 16 channels; a unit of a rotated model is four of them.
// The packed layout is a tile's already: 16 lines of 64 bytes.  Few rows, and depths that are not multiples of 64, run on VNNI.
#include <sys/syscall.h>
#include <unistd.h>

#include "vnni.h"

namespace berth {
namespace {

constexpr int kFewestRows = 9;
constexpr int kAmxRows = 16;
constexpr int64_t kDeep = 64;                            // of a tile of weights
constexpr int64_t kTileBytes = kDeep * kPanel;           // which lie one after the other

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles of so many rows, each of 64 bytes.
inline void configure(const int (&rows)[8]) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(rows[tile]);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));  // GCC 12's _tile_loadconfig says that it reads 8 bytes, and loses the rest
}

// What a block of row tiles x panels is made of.  Tiles 0 to 3 are sums [rows][16 channels]; of the others the first are activations
// [rows][64 deep], the rest weights [64 deep][16 channels].  Four tiles of sums: a product's result comes 52 cycles later, the next starts after 16.
struct Block {
  const Matrix& m;
  const Activations& a;
  int64_t panel, row;
  int rows;  // of each row tile
  float* out;
  int64_t stride;
  bool add;
  const int8_t* ahead;  // weights that will be read later
  int64_t ahead_each;   // bytes of them to ask for with each tile of depth
};

// `RowTiles` x `Panels` is 2 x 2 or 1 x 4: the more a tile is used when it is loaded, the better; or less for what is left.
// The order of operations is that of tile in body.h: integers over a unit, then floats unit by unit.
template <int RowTiles, int Panels>
void amx_block(const Block& b) {
  constexpr int kSums = RowTiles * Panels;
  alignas(64) int32_t dots[kSums][kAmxRows * kPanel];
  alignas(64) float sums[kSums][kAmxRows * kPanel];
  const int64_t depth = b.a.depth, panel_bytes = b.m.panel_bytes(), panel_scales = b.m.panel_scales();
  const int64_t tiles = depth / kDeep, unit_tiles = b.a.unit / kDeep;
  const int8_t* weights = b.m.weights + b.panel * panel_bytes;
  const uint16_t* scales = b.m.scales + b.panel * panel_scales;
  const int8_t *values = b.a.values + b.row * depth, *ahead = b.ahead;
  for (int64_t first = 0; first < tiles; first += unit_tiles) {
    const int64_t last = first + unit_tiles < tiles ? first + unit_tiles : tiles;
    _tile_zero(0);
    if constexpr (kSums > 1) _tile_zero(1);
    if constexpr (kSums > 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t t = first; t < last; ++t) {
      const int8_t *w = weights + t * kTileBytes, *x = values + t * kDeep;
      for (int64_t line = 0; line < b.ahead_each; line += 64, ahead += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      _tile_loadd(4, x, depth);
      if constexpr (RowTiles == 2) {
        _tile_loadd(6, w, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, x + kAmxRows * depth, depth);
        if constexpr (Panels == 2) {
          _tile_loadd(7, w + panel_bytes, 64);
          _tile_dpbssd(1, 4, 7);
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        } else {
          _tile_dpbssd(1, 5, 6);
        }
      } else {
        _tile_loadd(5, w, 64);
        _tile_dpbssd(0, 4, 5);
        if constexpr (Panels >= 2) {
          _tile_loadd(6, w + panel_bytes, 64);
          _tile_dpbssd(1, 4, 6);
        }
        if constexpr (Panels == 4) {
          _tile_loadd(7, w + 2 * panel_bytes, 64);
          _tile_dpbssd(2, 4, 7);
          _tile_loadd(5, w + 3 * panel_bytes, 64);
          _tile_dpbssd(3, 4, 5);
        }
      }
    }
    _tile_stored(0, dots[0], 64);
    if constexpr (kSums > 1) _tile_stored(1, dots[1], 64);
    if constexpr (kSums > 2) {
      _tile_stored(2, dots[2], 64);
      _tile_stored(3, dots[3], 64);
    }
    for (int i = 0; i < kSums; ++i) {
      const int panel = i % Panels, row_tile = i / Panels;
      const __m512 scale = bf16_scales(scales + panel * panel_scales + first * kDeep / b.m.group * kPanel);
      const auto sum = [&](int r) {
        const __m512 before = first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums[i] + r * kPanel);
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots[i] + r * kPanel)), scale, before);
      };
      if (last < tiles) {
        for (int r = 0; r < b.rows; ++r) _mm512_store_ps(sums[i] + r * kPanel, sum(r));
        continue;
      }
      float* to = b.out + row_tile * kAmxRows * b.stride + panel * kPanel;
      const float* row_scales = b.a.scales + b.row + row_tile * kAmxRows;
      for (int r = 0; r < b.rows; ++r, to += b.stride) {
        const __m512 scaled = _mm512_mul_ps(sum(r), _mm512_set1_ps(row_scales[r]));
        _mm512_storeu_ps(to, b.add ? _mm512_add_ps(_mm512_loadu_ps(to), scaled) : scaled);
      }
    }
  }
}

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  if (rows < kFewestRows || m.bits != 8 || !a.row_scale || a.unit % kDeep != 0 || a.depth % kDeep != 0)
    return vnni_matmul(m, first, last, a, rows, out, stride, add);
  const int64_t pairs = rows / (2 * kAmxRows) * (2 * kAmxRows), blocks = (rows + 2 * kAmxRows - 1) / (2 * kAmxRows);
  const int64_t panel_bytes = m.panel_bytes();
  // Each block asks for its part of what follows its panels, so that the next ones are there when they are wanted.
  const auto block = [&](int64_t panel, int64_t panels, int64_t row, int64_t n) {
    const int64_t each = (panels * kTileBytes / blocks + 63) / 64 * 64, part = row / (2 * kAmxRows) * each * (a.depth / kDeep);
    const bool more = (panel + 2 * panels) * kPanel <= m.channels && part < panels * panel_bytes;
    return Block{m, a, panel, row, static_cast<int>(n), out + row * stride + (panel - first) * kPanel, stride, add,
                 m.weights + (panel + panels) * panel_bytes + part, more ? each : 0};
  };
  if (pairs > 0) {
    configure({16, 16, 16, 16, 16, 16, 16, 16});
    int64_t panel = first;
    for (; panel + 2 <= last; panel += 2)
      for (int64_t row = 0; row < pairs; row += 2 * kAmxRows) amx_block<2, 2>(block(panel, 2, row, kAmxRows));
    for (int64_t row = 0; panel < last && row < pairs; row += 2 * kAmxRows) amx_block<2, 1>(block(panel, 1, row, kAmxRows));
  }
  for (int64_t row = pairs; row < rows; row += kAmxRows) {
    const int64_t n = rows - row < kAmxRows ? rows - row : kAmxRows;
    const int some = static_cast<int>(n);
    configure({some, some, some, some, some, 16, 16, 16});
    int64_t panel = first;
    for (; panel + 4 <= last; panel += 4) amx_block<1, 4>(block(panel, 4, row, n));
    for (; panel + 2 <= last; panel += 2) amx_block<1, 2>(block(panel, 2, row, n));
    for (; panel < last; ++panel) amx_block<1, 1>(block(panel, 1, row, n));
  }
  _tile_release();  // a thread that holds tiles is slow to switch
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_ATTEND
#include "body.h"

namespace berth {
namespace {

constexpr int kFewestQueries = 9;

// One tile of keys is a block of 16 tokens, 64 dims; one of values is 64 tokens, 16 dims, which four blocks hold: they are gathered.
class TiledChunk : public Chunk {
 public:
  using Chunk::Chunk;

  void run() {
    const int rows = static_cast<int>(c.rows);
    // queries and their scores: tiles 0 and 2 the first 16 rows, 1 and 3 the others; 4 and 5 keys
    const int second = rows > kAmxRows ? rows - kAmxRows : 1;
    configure({rows < kAmxRows ? rows : kAmxRows, second, rows < kAmxRows ? rows : kAmxRows, second, 16, 16, 16, 16});
    if (rows > kAmxRows)
      score_tiles<2>();
    else
      score_tiles<1>();
    soften();
    // sums of the planes' rows: tiles 0 to 3; 4 and 5 planes, 6 and 7 values
    configure({16, 16, 16, 16, 16, 16, 16, 16});
    blend_tiles();
    _tile_release();
  }

 private:
  template <int RowTiles>
  void score_tiles() {
    alignas(64) int32_t dots[2][kAmxRows * kPanel];
    for (int64_t b = 0; b < c.blocks; ++b) {
      const int8_t *keys = block[b], *ahead = after_keys(b);
      _tile_zero(2);
      if constexpr (RowTiles == 2) _tile_zero(3);
      for (int64_t dim = 0; dim < c.head_dim; dim += kDeep) {
        for (int64_t line = 0; line < kTileBytes; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(ahead + dim * kPanel + line), _MM_HINT_T0);
        _tile_loadd(4, keys + dim * kPanel, 64);
        _tile_loadd(0, c.values + dim, c.head_dim);
        _tile_dpbssd(2, 0, 4);
        if constexpr (RowTiles == 2) {
          _tile_loadd(1, c.values + kAmxRows * c.head_dim + dim, c.head_dim);
          _tile_dpbssd(3, 1, 4);
        }
      }
      _tile_stored(2, dots[0], 64);
      if constexpr (RowTiles == 2) _tile_stored(3, dots[1], 64);
      for (int64_t row = 0; row < c.rows; ++row) score(b, row, dots[0] + row * kPanel);
    }
  }

  void blend_tiles() {
    constexpr int64_t kTokens = kDeep;
    alignas(64) int8_t values[kChunkBlocks / 4][kTileBytes];
    alignas(64) int32_t dots[4][kAmxRows * kPanel];
    const int64_t tiles = (c.blocks * kPanel + kTokens - 1) / kTokens;
    if (c.blocks % 4 != 0)  // tokens of the last tile that are not there
      for (int64_t r = 0; r < 2 * c.rows; ++r) __builtin_memset(planes[r] + c.blocks * kPanel, 0, (tiles * 4 - c.blocks) * kPanel);
    for (int64_t dim = 0; dim < c.head_dim; dim += kPanel) {
      for (int64_t b = 0; b < c.blocks; ++b) {
        const int8_t *from = block[b] + kPanel * c.head_dim + dim * kPanel, *ahead = after_values(b) + dim * kPanel;
        for (int64_t line = 0; line < 4; ++line) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead + line * 64), _MM_HINT_T0);
          _mm512_store_si512(values[b / 4] + (b % 4 * 4 + line) * 64, _mm512_load_si512(from + line * 64));
        }
      }
      {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t t = 0; t < tiles; ++t) {
          const int8_t* p = planes[0] + t * kTokens;
          _tile_loadd(6, values[t], 64);
          _tile_loadd(4, p, kWidth);
          _tile_dpbssd(0, 4, 6);
          _tile_loadd(5, p + kAmxRows * kWidth, kWidth);
          _tile_dpbssd(1, 5, 6);
          _tile_loadd(4, p + 2 * kAmxRows * kWidth, kWidth);
          _tile_dpbssd(2, 4, 6);
          _tile_loadd(5, p + 3 * kAmxRows * kWidth, kWidth);
          _tile_dpbssd(3, 5, 6);
        }
        _tile_stored(0, dots[0], 64);
        _tile_stored(1, dots[1], 64);
        _tile_stored(2, dots[2], 64);
        _tile_stored(3, dots[3], 64);
        for (int64_t r = 0; r < c.rows; ++r) blend(r, dim, dots[0] + 2 * r * kPanel);
      }
    }
  }
};

static_assert(kAttentionRows == 2 * kAmxRows, "the tiles of a chunk");

void attend(const AttentionChunk& c) {
  if (c.rows >= kFewestQueries && c.head_dim % kDeep == 0) return TiledChunk(c).run();
  Chunk chunk(c);
  for (int64_t b = 0; b < c.blocks; ++b) chunk.score(b);
  chunk.soften();
  chunk.blend();
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
