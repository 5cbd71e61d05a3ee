// CUDA's vector types, as strictly aligned as there.
#pragma once
#include <cstdint>

#include "engine.h"

using shim::uint3;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

#define ENSDISTILL_SHIM_VECTORS(T, name)                                        \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
ENSDISTILL_SHIM_VECTORS(float, float)
ENSDISTILL_SHIM_VECTORS(int, int)
ENSDISTILL_SHIM_VECTORS(unsigned, uint)
ENSDISTILL_SHIM_VECTORS(short, short)
ENSDISTILL_SHIM_VECTORS(unsigned short, ushort)
ENSDISTILL_SHIM_VECTORS(signed char, char)
ENSDISTILL_SHIM_VECTORS(unsigned char, uchar)
#undef ENSDISTILL_SHIM_VECTORS

struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
