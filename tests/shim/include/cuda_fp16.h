// Stands in for CUDA's header.
#pragma once
#include <cuda_runtime.h>

#include "shim/rounding.h"

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float x) : bits(shim::round_to_16_bits<5>(x)) {}
  __half(double x) : bits(shim::round_to_16_bits<5>(x)) {}
  operator float() const { return shim::from_16_bits<5>(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return shim::same_bits<__half>(bits); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
