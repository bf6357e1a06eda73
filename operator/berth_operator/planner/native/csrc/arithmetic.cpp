// What arithmetic.hpp gives, for tests/planner/test_native.py to hold against libm.

#include "api.hpp"
#include "arithmetic.hpp"

// out[5, count] = e^x, e^x - 1, 2^x, ln x and log2 x.
BERTH_API void berth_arithmetic(const double* x, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = berth::exp(x[i]);
    out[count + i] = berth::expm1(x[i]);
    out[2 * count + i] = berth::exp2(x[i]);
    out[3 * count + i] = berth::log(x[i]);
    out[4 * count + i] = berth::log2(x[i]);
  }
}
