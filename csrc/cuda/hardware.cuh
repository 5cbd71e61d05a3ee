// All hardware functions that the kernels use: lanes, barriers, clusters, asynchronous copies, exp and log, number formats.
// Nothing else in this folder's device code is specific to CUDA but the built-in indices; a stand-in for this layer lets the
// kernels run on a CPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define ENSDISTILL_DEVICE __device__ __forceinline__

namespace ensdistill::cuda {

using Bf16 = __nv_bfloat16;
using F16 = __half;

template <class R>
ENSDISTILL_DEVICE R minus_infinity() {
  return -R(__int_as_float(0x7f800000));
}
template <class R>
ENSDISTILL_DEVICE R not_a_number() {
  return R(__int_as_float(0x7fffffff));
}

// exp(x a) is power(x * power_scale(a)), with one multiplication where a is the same for many x. The hardware's 2^x: arguments are at most 0
// here, so the relative error, |x| * 2^-24 + 2^-22, is largest where the value is smallest. Numbers below float's normal range become 0: to
// keep them takes three instructions more.
ENSDISTILL_DEVICE float power(float x) {
#ifdef ENSDISTILL_SHIM
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
ENSDISTILL_DEVICE double power(double x) { return exp(x); }
ENSDISTILL_DEVICE float power_scale(float a) { return a * 1.44269504f; }
ENSDISTILL_DEVICE double power_scale(double a) { return a; }
ENSDISTILL_DEVICE float exponential(float x) { return power(power_scale(x)); }
ENSDISTILL_DEVICE double exponential(double x) { return exp(x); }
// Logarithms that power() takes, and their natural ones.
ENSDISTILL_DEVICE float power_log(float x) { return log2f(x); }
ENSDISTILL_DEVICE double power_log(double x) { return log(x); }
ENSDISTILL_DEVICE float natural(float x) { return x * 0.693147181f; }
ENSDISTILL_DEVICE double natural(double x) { return x; }
ENSDISTILL_DEVICE float logarithm(float x) { return logf(x); }
ENSDISTILL_DEVICE double logarithm(double x) { return log(x); }

struct Math {
  template <class R>
  static ENSDISTILL_DEVICE R log(R x) {
    return logarithm(x);
  }
};

// A NaN gets lost in a maximum; it shows in the sums.
ENSDISTILL_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
ENSDISTILL_DEVICE double larger(double a, double b) { return fmax(a, b); }

// a * b + c * d with each product rounded: the same bits whichever of the two comes first.
ENSDISTILL_DEVICE float two_products(float a, float b, float c, float d) { return __fadd_rn(__fmul_rn(a, b), __fmul_rn(c, d)); }
ENSDISTILL_DEVICE double two_products(double a, double b, double c, double d) { return __dadd_rn(__dmul_rn(a, b), __dmul_rn(c, d)); }

// A value of any trivial type, word by word, from the lane whose number differs by `mask`. Every lane of the warp must arrive.
template <class T>
ENSDISTILL_DEVICE T from_lane_across(T x, int mask) {
  static_assert(sizeof(T) % 4 == 0, "lanes exchange words");
  uint32_t word[sizeof(T) / 4];
  memcpy(word, &x, sizeof(T));
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 4); ++i) word[i] = __shfl_xor_sync(0xffffffffu, word[i], mask);
  memcpy(&x, word, sizeof(T));
  return x;
}

// From the lane that many below; the lowest lanes get their own. Every lane of the warp must arrive.
template <class T>
ENSDISTILL_DEVICE T from_lane_below(T x, int distance) {
  return __shfl_up_sync(0xffffffffu, x, distance);
}

// --- asynchronous copies from device to shared memory: a thread may read its own copies once it has waited

#ifndef ENSDISTILL_SHIM
template <int kBytes>
ENSDISTILL_DEVICE void async_copy(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async can do");
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
}
ENSDISTILL_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft of the committed groups are under way.
template <int kLeft>
ENSDISTILL_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// --- clusters: blocks that run together and read each other's shared memory

ENSDISTILL_DEVICE int cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return int(rank);
}
ENSDISTILL_DEVICE int cluster_size() {
  uint32_t size = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return int(size);
}
// All threads of a cluster meet. The barrier orders the earlier accesses of those threads that called cluster_fence(), and of no others.
// A fence waits until all stores of its thread are visible, the gradient too: threads whose stores other blocks read call it.
ENSDISTILL_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
ENSDISTILL_DEVICE void cluster_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
#endif
}
// The word at the same place of another block's shared memory.
ENSDISTILL_DEVICE uint32_t word_of_block(const uint32_t* mine, int block) {
#if __CUDA_ARCH__ >= 900
  uint32_t there, word;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(uint32_t(__cvta_generic_to_shared(mine))), "r"(block));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(there) : "memory");
  return word;
#else
  return *mine;
#endif
}
#endif

}  // namespace ensdistill::cuda
