// AVX-512 with VNNI.  vpdpbusd multiplies unsigned by signed bytes and adds four products to 32 bits without saturating: weights are read
// as weight + 128 (one xor a line), and -128 times the sum of the row's values, the row's bias, is where the sum starts.
#include "vnni.h"

namespace berth {
namespace {
void matmul(const Matrix& m, int64_t first, int64_t last, const Activations& a, int64_t rows, float* out, int64_t stride, bool add) {
  vnni_matmul(m, first, last, a, rows, out, stride, add);
}
}  // namespace
}  // namespace berth

#include "body.h"

namespace berth {
const Isa avx512vnni_isa = BERTH_ISA_TABLE("avx512vnni");
}
