// CUDA's device functions.
#pragma once
#include <cmath>

namespace shim {

// Values travel between lanes as 64 bits.
template <class T>
uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "lanes exchange numbers of up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
template <class To, class From>
To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}
template <class T>
T load(const T* p, Place place) {
  check_aligned(p, alignof(T), "a load", place);
  return *p;
}
template <class T>
void store(T* p, T x, Place place) {
  check_aligned(p, alignof(T), "a store", place);
  *p = x;
}

}  // namespace shim

// --- memory

#define ENSDISTILL_SHIM_LOAD(name)                                   \
  template <class T>                                                 \
  inline T name(const T* p, ENSDISTILL_SHIM_PLACE) { \
    return shim::load(p, place);                                     \
  }
ENSDISTILL_SHIM_LOAD(__ldg)
ENSDISTILL_SHIM_LOAD(__ldcg)
ENSDISTILL_SHIM_LOAD(__ldca)
ENSDISTILL_SHIM_LOAD(__ldcs)
ENSDISTILL_SHIM_LOAD(__ldlu)
ENSDISTILL_SHIM_LOAD(__ldcv)
#undef ENSDISTILL_SHIM_LOAD
#define ENSDISTILL_SHIM_STORE(name)                                    \
  template <class T>                                                   \
  inline void name(T* p, T x, ENSDISTILL_SHIM_PLACE) { \
    shim::store(p, x, place);                                          \
  }
ENSDISTILL_SHIM_STORE(__stwb)
ENSDISTILL_SHIM_STORE(__stcg)
ENSDISTILL_SHIM_STORE(__stcs)
ENSDISTILL_SHIM_STORE(__stwt)
#undef ENSDISTILL_SHIM_STORE

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

// Threads hand over only where they wait, so nothing comes between.
template <class T, class F>
inline T ensdistill_shim_atomic(T* p, F update) {
  const T old = *p;
  *p = update(old);
  return old;
}
#define ENSDISTILL_SHIM_ATOMIC(name, expression)                                 \
  template <class T>                                                             \
  inline T name(T* p, typename std::common_type<T>::type x) {    \
    return ensdistill_shim_atomic(p, [x](T old) -> T { return T(expression); }); \
  }
ENSDISTILL_SHIM_ATOMIC(atomicAdd, old + x)
ENSDISTILL_SHIM_ATOMIC(atomicSub, old - x)
ENSDISTILL_SHIM_ATOMIC(atomicMax, old > x ? old : x)
ENSDISTILL_SHIM_ATOMIC(atomicMin, old < x ? old : x)
ENSDISTILL_SHIM_ATOMIC(atomicAnd, old& x)
ENSDISTILL_SHIM_ATOMIC(atomicOr, old | x)
ENSDISTILL_SHIM_ATOMIC(atomicXor, old ^ x)
ENSDISTILL_SHIM_ATOMIC(atomicExch, ((void)old, x))
ENSDISTILL_SHIM_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
#undef ENSDISTILL_SHIM_ATOMIC
template <class T>
T atomicCAS(T* p, typename std::common_type<T>::type expected, typename std::common_type<T>::type x) {
  return ensdistill_shim_atomic(p, [=](T old) { return old == expected ? x : old; });
}

// --- lanes of a warp

#define ENSDISTILL_SHIM_SHUFFLE(name, kind)                                                                                      \
  template <class T>                                                                                                             \
  T name(unsigned mask, T x, int operand, int width = 32, ENSDISTILL_SHIM_PLACE) {                                               \
    return shim::from_bits<T>(shim::shuffle(shim::Shuffle::kind, mask, shim::to_bits(x), int(sizeof x), operand, width, place)); \
  }
ENSDISTILL_SHIM_SHUFFLE(__shfl_xor_sync, by_xor)
ENSDISTILL_SHIM_SHUFFLE(__shfl_sync, from)
ENSDISTILL_SHIM_SHUFFLE(__shfl_up_sync, up)
ENSDISTILL_SHIM_SHUFFLE(__shfl_down_sync, down)
#undef ENSDISTILL_SHIM_SHUFFLE

namespace shim {
inline uint64_t either(uint64_t a, uint64_t b) { return a | b; }
inline uint64_t both(uint64_t a, uint64_t b) { return a & b; }
inline uint64_t odd(uint64_t a, uint64_t b) { return a ^ b; }
inline uint64_t first_of(uint64_t a, uint64_t) { return a; }
inline uint64_t sum(uint64_t a, uint64_t b) { return uint32_t(a) + uint32_t(b); }
template <class T>
uint64_t largest(uint64_t a, uint64_t b) {
  return from_bits<T>(a) < from_bits<T>(b) ? b : a;
}
template <class T>
uint64_t smallest(uint64_t a, uint64_t b) {
  return from_bits<T>(b) < from_bits<T>(a) ? b : a;
}
template <class T>
T reduced(const char* name, unsigned mask, T x, Combine combine, Place place) {
  static_assert(sizeof(T) == 4, "an int or unsigned");
  return from_bits<T>(reduce(name, mask, to_bits(x), combine, place) & 0xffffffffu);
}
}  // namespace shim

inline void __syncwarp(unsigned mask = 0xffffffffu, ENSDISTILL_SHIM_PLACE) { shim::reduce("__syncwarp", mask, 0, shim::first_of, place); }
inline unsigned __ballot_sync(unsigned mask, int predicate, ENSDISTILL_SHIM_PLACE) {
  return unsigned(shim::reduce("__ballot_sync", mask, predicate ? 1u << shim::lane() : 0u, shim::either, place));
}
inline int __any_sync(unsigned mask, int predicate, ENSDISTILL_SHIM_PLACE) {
  return int(shim::reduce("__any_sync", mask, predicate != 0, shim::either, place));
}
inline int __all_sync(unsigned mask, int predicate, ENSDISTILL_SHIM_PLACE) {
  return int(shim::reduce("__all_sync", mask, predicate != 0, shim::both, place));
}
template <class T>
T __reduce_add_sync(unsigned mask, T x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_add_sync", mask, x, shim::sum, place);
}
template <class T>
T __reduce_max_sync(unsigned mask, T x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_max_sync", mask, x, shim::largest<T>, place);
}
template <class T>
T __reduce_min_sync(unsigned mask, T x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_min_sync", mask, x, shim::smallest<T>, place);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_and_sync", mask, x, shim::both, place);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_or_sync", mask, x, shim::either, place);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned x, ENSDISTILL_SHIM_PLACE) {
  return shim::reduced("__reduce_xor_sync", mask, x, shim::odd, place);
}

// --- blocks

inline void __syncthreads(ENSDISTILL_SHIM_PLACE) { shim::barrier(false, "__syncthreads", place); }
inline int __syncthreads_count(int predicate, ENSDISTILL_SHIM_PLACE) { return shim::barrier(predicate != 0, "__syncthreads_count", place); }
inline int __syncthreads_or(int predicate, ENSDISTILL_SHIM_PLACE) { return shim::barrier(predicate != 0, "__syncthreads_or", place) > 0; }
inline int __syncthreads_and(int predicate, ENSDISTILL_SHIM_PLACE) { return shim::barrier(predicate == 0, "__syncthreads_and", place) == 0; }

// Launches wait for the one before anyway.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// --- numbers

inline int __float_as_int(float x) { return shim::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return shim::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return shim::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return shim::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return shim::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim::same_bits<double>(x); }

// The hardware has 2^x and log2 only; the rounding of the factor costs as much here.
inline float __expf(float x) { return exp2f(x * 1.4426950408889634f); }
inline float __exp10f(float x) { return exp2f(x * 3.3219280948873623f); }
inline float __log2f(float x) { return log2f(x); }
inline float __logf(float x) { return log2f(x) * 0.6931471805599453f; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32) | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 15, byte = unsigned(bytes >> (8 * (s & 7))) & 0xff;
    r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return r;
}

#define ENSDISTILL_SHIM_MINMAX(T)                                  \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
ENSDISTILL_SHIM_MINMAX(int)
ENSDISTILL_SHIM_MINMAX(unsigned)
ENSDISTILL_SHIM_MINMAX(long)
ENSDISTILL_SHIM_MINMAX(unsigned long)
ENSDISTILL_SHIM_MINMAX(long long)
ENSDISTILL_SHIM_MINMAX(unsigned long long)
#undef ENSDISTILL_SHIM_MINMAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
