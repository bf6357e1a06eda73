// AMX, for the many rows of a prompt: tiles of 16 rows x 64 of depth by 64 of depth x 16 channels, which is one unit of a rotated model.
// The packed layout is a tile's already: 16 lines of 64 bytes.  Few rows, and whatever is not in units of 64, run on VNNI.
#include <sys/syscall.h>
#include <unistd.h>

#include "vnni.h"

namespace berth {
namespace {

constexpr int kFewestRows = 9;
constexpr int kTileUnits = 4;  // units in flight: a product's result comes 52 cycles later

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3 are sums [rows][16 channels], 4-5 activations [rows][64], 6-7 weights [16][64].
inline void configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : 16);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));  // GCC 12's _tile_loadconfig says that it reads 8 bytes, and loses the rest
}

// sums `c` = activations x weights, through tiles `a` and `b`; a macro, because the intrinsics spell their arguments out in assembly
#define BERTH_MULTIPLY(c, a, b, values, stride, weights, to) \
  do {                                                       \
    _tile_zero(c);                                           \
    _tile_loadd(a, values, stride);                          \
    _tile_loadd(b, weights, 64);                             \
    _tile_dpbssd(c, a, b);                                   \
    _tile_stored(c, to, 64);                                 \
  } while (false)

// Up to 16 rows by one panel; the tiles are configured for so many rows.  The order of operations is that of tile in body.h.
template <bool Whole>
inline void amx_tile(const Matrix& m, int64_t panel, const Activations& a, int64_t row, int rows, float* out, int64_t stride, bool add) {
  alignas(64) int32_t dots[kTileUnits][16 * kPanel];
  const int8_t* weights = m.weights + panel * m.panel_bytes();
  const uint16_t* scales = m.scales + panel * m.panel_scales();
  const int8_t* values = a.values + row * a.depth;
  const int n = Whole ? 16 : rows;
  __m512 sums[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) sums[r] = _mm512_setzero_ps();
  const auto collect = [&](int64_t u, const int32_t* from) {
    const __m512 scale = bf16_scales(scales + u * a.unit / m.group * kPanel);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r)
      if (Whole || r < n) sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(from + r * kPanel)), scale, sums[r]);
  };
  const int64_t units = a.units();
  int64_t u = 0;
  for (; u + kTileUnits <= units; u += kTileUnits) {
    BERTH_MULTIPLY(0, 4, 6, values + u * 64, a.depth, weights + u * 1024, dots[0]);
    BERTH_MULTIPLY(1, 5, 7, values + u * 64 + 64, a.depth, weights + u * 1024 + 1024, dots[1]);
    BERTH_MULTIPLY(2, 4, 6, values + u * 64 + 128, a.depth, weights + u * 1024 + 2048, dots[2]);
    BERTH_MULTIPLY(3, 5, 7, values + u * 64 + 192, a.depth, weights + u * 1024 + 3072, dots[3]);
    for (int i = 0; i < kTileUnits; ++i) collect(u + i, dots[i]);
  }
  for (; u < units; ++u) {
    BERTH_MULTIPLY(0, 4, 6, values + u * 64, a.depth, weights + u * 1024, dots[0]);
    collect(u, dots[0]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r)
    if (Whole || r < n) {
      float* to = out + r * stride;
      const __m512 sum = _mm512_mul_ps(sums[r], _mm512_set1_ps(a.scales[row + r]));
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
    }
}

void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  if (rows < kFewestRows || m.bits != 8 || !a.row_scale || a.unit != 64 || a.depth % 64 != 0)
    return vnni_matmul(m, first, last, a, rows, out, stride, add);
  const int64_t whole = rows / 16 * 16;
  if (whole > 0) {
    configure(16);
    for (int64_t panel = first; panel < last; ++panel)
      for (int64_t row = 0; row < whole; row += 16)
        amx_tile<true>(m, panel, a, row, 16, out + row * stride + (panel - first) * kPanel, stride, add);
  }
  if (whole < rows) {
    configure(static_cast<int>(rows - whole));
    for (int64_t panel = first; panel < last; ++panel)
      amx_tile<false>(m, panel, a, whole, static_cast<int>(rows - whole), out + whole * stride + (panel - first) * kPanel, stride, add);
  }
  _tile_release();  // a thread that holds tiles is slow to switch
}

}  // namespace
}  // namespace berth

#define BERTH_OWN_ROUNDING
#define BERTH_OWN_MATMUL
#include "body.h"

namespace berth {

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
