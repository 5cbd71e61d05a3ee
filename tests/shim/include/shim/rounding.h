// Narrow floating-point formats: 1 sign bit, kExponent bits of exponent, the rest mantissa.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace shim {

// To the nearest, ties to even, once; overflow to infinity. A NaN becomes CUDA's: all bits set but the sign.
template <int kExponent>
uint16_t round_to_16_bits(double x) {
  constexpr int mantissa = 15 - kExponent, bias = (1 << (kExponent - 1)) - 1, largest = bias, smallest = 1 - bias;
  if (x != x) return 0x7fff;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0, infinity = uint16_t(((1 << kExponent) - 1) << mantissa);
  double a = std::fabs(x);
  if (std::isinf(a)) return sign | infinity;
  if (a == 0) return sign;
  int exponent = std::ilogb(a);
  if (exponent > largest) return sign | infinity;
  if (exponent < smallest) exponent = smallest;                              // subnormal: the unit stays
  const double units = std::nearbyint(std::scalbn(a, mantissa - exponent));  // exact but for the rounding, which is to even
  // A carry out of the mantissa runs into the exponent, as it should, up to infinity.
  return uint16_t(sign | uint16_t((exponent - smallest) * (1 << mantissa) + int(units)));
}

template <int kExponent>
float from_16_bits(uint16_t bits) {
  constexpr int mantissa = 15 - kExponent, bias = (1 << (kExponent - 1)) - 1;
  const uint32_t exponent = bits >> mantissa & ((1u << kExponent) - 1), fraction = bits & ((1u << mantissa) - 1),
                 sign = uint32_t(bits & 0x8000) << 16;
  uint32_t word = sign;
  if (exponent == (1u << kExponent) - 1) {
    word |= 0x7f800000u | fraction << (23 - mantissa);
  } else if (exponent == 0 && kExponent < 8) {
    const float value = std::scalbn(float(fraction), 1 - bias - mantissa);
    return sign ? -value : value;
  } else {
    word |= (exponent + 127 - bias) << 23 | fraction << (23 - mantissa);
  }
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

}  // namespace shim
