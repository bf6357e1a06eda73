// Exponentials and logarithms that are the same on every machine, and that loops over them can be vectorised with.
//
// libm's are neither: it picks its code by what the processor has.  These are within 2 units in the last place of it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#define BERTH_INLINE inline __attribute__((always_inline))

namespace berth {

constexpr double kTiny = 1e-12;
constexpr double kLn2 = 0x1.62e42fefa39efp-1;

BERTH_INLINE double clip(double value, double low, double high) { return std::min(std::max(value, low), high); }

constexpr double kShift = 0x1.8p52;

// The nearest whole number, of numbers below 2^51; even ones where two are as near.
BERTH_INLINE double rint(double x) { return x + kShift - kShift; }

// The greatest whole number that is not above, of numbers below 2^51.
BERTH_INLINE double floor(double x) {
  const double near = rint(x);
  return near > x ? near - 1 : near;
}

// 2^n (1 + part), so that differences from 1 keep their digits.
struct Exponential {
  double power, part;
};

// Of 2^(near + rest / ln 2), where near + 1.5 2^52, which rounds it to a whole number n, was `shifted`.
BERTH_INLINE Exponential exponential(double shifted, double r) {
  double sum = 1.0 / 6227020800.0;  // Taylor's series: with |r| <= ln 2 / 2 the next term is below 1e-17
  for (double divisor : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0})
    sum = sum * r + 1.0 / divisor;
  const auto bits = (std::bit_cast<uint64_t>(shifted) << 52) + std::bit_cast<uint64_t>(1.0);
  return {std::bit_cast<double>(bits), r + r * r * sum};
}

BERTH_INLINE Exponential exponential(double x) {
  const double shifted = clip(x, -708.0, 709.0) * (1 / kLn2) + kShift, n = shifted - kShift;
  return exponential(shifted, (clip(x, -708.0, 709.0) - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33);
}

// e^x; 0 below what a normal number can say, and no more than e^709.
BERTH_INLINE double exp(double x) {
  const Exponential found = exponential(x);
  return x < -708.0 ? 0.0 : found.power + found.power * found.part;
}

// e^x - 1
BERTH_INLINE double expm1(double x) {
  const Exponential found = exponential(x);
  return found.power * found.part + (found.power - 1);
}

// 2^x, exact for whole numbers.
BERTH_INLINE double exp2(double x) {
  const double shifted = x + kShift;
  const Exponential found = exponential(shifted, (x - (shifted - kShift)) * kLn2);
  return found.power + found.power * found.part;
}

// x = 2^exponent e^rest, of positive normal numbers.
struct Logarithm {
  double exponent, rest;
};

BERTH_INLINE Logarithm logarithm(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  const uint64_t biased = (bits - 0x3fe6a09e667f3bcd + (uint64_t{1023} << 52)) >> 52;  // of x / m, m from sqrt(1/2)
  const double m = std::bit_cast<double>(bits - (biased << 52) + (uint64_t{1023} << 52));
  const double exponent = std::bit_cast<double>(biased | 0x4330000000000000) - (0x1p52 + 1023);
  const double s = (m - 1) / (m + 1), square = s * s;  // ln m = 2 artanh s, |s| <= 0.172
  double sum = 1.0 / 21.0;
  for (double divisor : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) sum = sum * square + 1.0 / divisor;
  return {exponent, 2 * s + 2 * s * square * sum};
}

// ln x of a positive normal number.
BERTH_INLINE double log(double x) {
  const Logarithm found = logarithm(x);
  return found.exponent * 0x1.62e42fee00000p-1 + (found.rest + found.exponent * 0x1.a39ef35793c76p-33);
}

// log2 x, exact for powers of two.
BERTH_INLINE double log2(double x) {
  const Logarithm found = logarithm(x);
  return found.exponent + found.rest * (1 / kLn2);
}

}  // namespace berth
