// Eight doubles at a time, from the compiler's own vector types. Rows are padded to a multiple of eight, so there are no tails.
#pragma once
#include <cstdint>
#include <cstring>

// Functions so marked are compiled for wider registers too; the loader picks one when the library is loaded.
#if defined(__x86_64__) && defined(__ELF__) && defined(__GNUC__) && !defined(__clang__)
#define ENSDISTILL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ENSDISTILL_CLONES
#endif
#define ENSDISTILL_INLINE inline __attribute__((always_inline))

namespace ensdistill::doubles {

constexpr int64_t kLanes = 8;
constexpr double kMinusInf = -__builtin_inf();
constexpr double kRound = 0x1.8p52;  // added, it rounds half to even and leaves the integer in the sum's last bits

typedef double Vec __attribute__((vector_size(8 * kLanes)));
typedef int64_t Bits __attribute__((vector_size(8 * kLanes)));  // of a Vec; as a condition all ones or all zeros
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

ENSDISTILL_INLINE Vec load(const double* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
ENSDISTILL_INLINE void store(double* p, Vec v) { std::memcpy(p, &v, sizeof v); }
ENSDISTILL_INLINE Vec all(double x) { return Vec{} + x; }
ENSDISTILL_INLINE Vec larger(Vec a, Vec b) { return b > a ? b : a; }
ENSDISTILL_INLINE double sum(Vec v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
ENSDISTILL_INLINE double largest(Vec v) {
  double max = v[0];
  for (int i = 1; i < kLanes; ++i) max = v[i] > max ? v[i] : max;
  return max;
}

// exp(x) for x <= 0, to about 1 ulp; 0 below -708, where the result would become subnormal. NaN stays.
ENSDISTILL_INLINE Vec exp_of_negative(Vec x) {
  const Vec y = x < -708.0 ? all(-708.0) : x;
  const Vec shifted = y * 0x1.71547652b82fep0 + kRound;
  const Vec n = shifted - kRound;
  const Vec r = (y - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;  // |r| <= log(2) / 2
  Vec e = all(1.0 / 6227020800);                                             // Taylor to degree 13: the rest is below 2^-57
  e = e * r + 1.0 / 479001600;
  e = e * r + 1.0 / 39916800;
  e = e * r + 1.0 / 3628800;
  e = e * r + 1.0 / 362880;
  e = e * r + 1.0 / 40320;
  e = e * r + 1.0 / 5040;
  e = e * r + 1.0 / 720;
  e = e * r + 1.0 / 120;
  e = e * r + 1.0 / 24;
  e = e * r + 1.0 / 6;
  e = e * r + 0.5;
  e = e * r + 1.0;
  e = e * r + 1.0;
  const Vec power = (Vec)(((Bits)shifted << 52) + (int64_t(1023) << 52));
  return x < -708.0 ? Vec{} : e * power;
}

// log(x) for normal positive x, to about 1 ulp: x = 2^n (1 + f), s = f / (2 + f), log(1 + f) = 2 atanh(s).
ENSDISTILL_INLINE Vec log_of_normal(Vec x) {
  const Bits bits = (Bits)x - 0x3fe6a09e667f3bcd;  // 1 + f in sqrt(1/2) .. sqrt(2)
  const Vec n = (Vec)((bits >> 52) + (Bits)all(kRound)) - kRound;
  const Vec f = (Vec)((bits & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd) - 1.0;
  const Vec s = f / (f + 2.0), z = s * s;
  Vec t = all(1.0 / 21);  // |s| <= 0.172: the first term left out is below 2^-58 of the first
  t = t * z + 1.0 / 19;
  t = t * z + 1.0 / 17;
  t = t * z + 1.0 / 15;
  t = t * z + 1.0 / 13;
  t = t * z + 1.0 / 11;
  t = t * z + 1.0 / 9;
  t = t * z + 1.0 / 7;
  t = t * z + 1.0 / 5;
  t = t * z + 1.0 / 3;
  return n * 0x1.62e42fee00000p-1 + (2 * s + (2 * s * z * t + n * 0x1.a39ef35793c76p-33));
}

}  // namespace ensdistill::doubles
