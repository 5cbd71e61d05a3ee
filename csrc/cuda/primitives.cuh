// The thin layer between the kernels and the hardware: groups of threads that own a row and reduce over it, 128-bit
// accesses, element formats, exp and log. Kernels use nothing of CUDA but what stands here and the built-in indices.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../rowmath.h"
#include "plan.h"

#define ENSDISTILL_DEVICE __device__ __forceinline__

namespace ensdistill::cuda {

using Bf16 = __nv_bfloat16;
using F16 = __half;
struct Any {};  // an element whose type is known at run time only: the double-precision plan, where speed doesn't matter

enum class Element : int { f64, f32, bf16, f16, u8 };

// What a kernel for students of type T computes in, how many elements make a 16-byte access, and how many such vectors a
// thread asks for before it uses the first (more would cost registers, and with them warps that keep loads in flight too).
template <class T>
struct Traits {
  using Real = float;
  static constexpr int vector = 16 / sizeof(T), batch = 2;
};
template <>
struct Traits<Any> {
  using Real = double;
  static constexpr int vector = 1, batch = 2;
};

template <class R>
ENSDISTILL_DEVICE R minus_infinity() {
  return -R(__int_as_float(0x7f800000));
}
template <class R>
ENSDISTILL_DEVICE R not_a_number() {
  return R(__int_as_float(0x7fffffff));
}

// The hardware's 2^x after one multiplication: arguments are at most 0 here, so the relative error, |x| * 2^-24 + 2^-22,
// is largest where the value is smallest.
ENSDISTILL_DEVICE float exponential(float x) { return __expf(x); }
ENSDISTILL_DEVICE double exponential(double x) { return exp(x); }
ENSDISTILL_DEVICE float logarithm(float x) { return logf(x); }
ENSDISTILL_DEVICE double logarithm(double x) { return log(x); }

// A NaN gets lost in a maximum; it shows in the sums.
struct Max {
  ENSDISTILL_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  ENSDISTILL_DEVICE double operator()(double a, double b) const { return fmax(a, b); }
};
struct Sum {
  template <class R>
  ENSDISTILL_DEVICE R operator()(R a, R b) const {
    return a + b;
  }
};

// Butterfly over neighbouring lanes (a power of two). Sum and maximum commute exactly, so all lanes end with the same bits.
// Every lane of the warp must arrive.
template <class R, class Op>
ENSDISTILL_DEVICE R reduce_lanes(R x, int lanes, Op op) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

// `lanes` neighbouring lanes of a warp own a row.
struct Tile {
  int size, rank, index;

  ENSDISTILL_DEVICE Tile(int lanes, void*) : size(lanes), rank(int(threadIdx.x) % lanes), index(int(threadIdx.x) / lanes) {}
  template <class R, class Op>
  ENSDISTILL_DEVICE R reduce(R x, R, Op op) {
    return reduce_lanes(x, size, op);
  }
};

// A block owns a row.
struct Block {
  static constexpr int index = 0;
  int size, rank;
  void* slots;
  int turn = 0;

  ENSDISTILL_DEVICE Block(int lanes, void* memory) : size(lanes), rank(int(threadIdx.x)), slots(memory) {}
  // One barrier: the next reduction writes the other set of slots, and nobody can write this one again before all threads
  // have passed that next one's barrier, that is, have read this one.
  template <class R, class Op>
  ENSDISTILL_DEVICE R reduce(R x, R neutral, Op op) {
    R* slot = static_cast<R*>(slots) + 32 * turn;
    turn ^= 1;
    x = reduce_lanes(x, 32, op);
    if (rank % 32 == 0) slot[rank / 32] = x;
    __syncthreads();
    return reduce_lanes(rank % 32 < size / 32 ? slot[rank % 32] : neutral, 32, op);
  }
};

// A row cut into vectors whose starts are aligned in memory; the first and the last may be partial.
template <int V>
struct Span {
  int shift;  // elements of the first vector that lie before the row
  int classes;

  ENSDISTILL_DEVICE int first(int v) const { return v * V - shift; }
  ENSDISTILL_DEVICE bool inside(int i) const { return unsigned(i) < unsigned(classes); }
  ENSDISTILL_DEVICE bool whole(int first) const { return first >= 0 && first + V <= classes; }
  ENSDISTILL_DEVICE int vectors() const { return (classes + shift + V - 1) / V; }
};

// V elements as they come from memory, not decoded yet, so that a load needn't be waited for.
template <class T, int V>
struct Packed {
  static constexpr int bytes = V * sizeof(T), per_word = 4 / sizeof(T);
  uint32_t word[bytes / 4];

  static ENSDISTILL_DEVICE uint32_t bits(const T* from) {
    if constexpr (sizeof(T) == 4) return __ldg(reinterpret_cast<const uint32_t*>(from));
    if constexpr (sizeof(T) == 2) return __ldg(reinterpret_cast<const uint16_t*>(from));
    if constexpr (sizeof(T) == 1) return __ldg(reinterpret_cast<const uint8_t*>(from));
  }
  ENSDISTILL_DEVICE void load(const T* from) {
    if constexpr (bytes >= 16) {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(from) + i);
        word[4 * i] = w.x, word[4 * i + 1] = w.y, word[4 * i + 2] = w.z, word[4 * i + 3] = w.w;
      }
    } else if constexpr (bytes == 8) {
      const uint2 w = __ldg(reinterpret_cast<const uint2*>(from));
      word[0] = w.x, word[1] = w.y;
    } else {
      static_assert(bytes == 4, "a vector is 4, 8, or a multiple of 16 bytes");
      word[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    }
  }
  // One by one: a partial vector, or a row whose vectors aren't aligned. Elements outside the row read as zero bits. Rolled,
  // each element pushed in from the top: the rare path must not take registers from the usual one.
  ENSDISTILL_DEVICE void load_elements(const T* row, int first, const Span<V>& span) {
    constexpr int width = 32 / per_word, words = bytes / 4;
#pragma unroll
    for (int i = 0; i < words; ++i) word[i] = 0;
#pragma unroll 1
    for (int j = 0; j < V; ++j) {
      const uint32_t next = span.inside(first + j) ? bits(row + first + j) : 0;
#pragma unroll
      for (int i = 0; i < words; ++i) {
        const uint32_t above = i + 1 < words ? word[i + 1] : next;
        word[i] = per_word == 1 ? above : __funnelshift_r(word[i], above, width);
      }
    }
  }
  ENSDISTILL_DEVICE float at(int j) const { return decode_bits(word[j / per_word] >> (32 / per_word * (j % per_word))); }
  static ENSDISTILL_DEVICE float decode_bits(uint32_t b) {
    if constexpr (sizeof(T) == 1) return float(b & 0xffu);
    if constexpr (sizeof(T) == 4) return __uint_as_float(b);
    if constexpr (sizeof(T) == 2) return value(static_cast<const T*>(nullptr), uint16_t(b));
  }
  static ENSDISTILL_DEVICE float value(const Bf16*, uint16_t b) { return __uint_as_float(uint32_t(b) << 16); }
  static ENSDISTILL_DEVICE float value(const F16*, uint16_t b) { return __half2float(__ushort_as_half(b)); }

  static ENSDISTILL_DEVICE Packed encode(const float* x) {
    Packed packed;
#pragma unroll
    for (int i = 0; i < bytes / 4; ++i) packed.word[i] = encode_word(static_cast<const T*>(nullptr), x + i * per_word);
    return packed;
  }
  static ENSDISTILL_DEVICE uint32_t encode_word(const float*, const float* x) { return __float_as_uint(x[0]); }
  static ENSDISTILL_DEVICE uint32_t encode_word(const Bf16*, const float* x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x[0])) | uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(x[1]))) << 16;
  }
  static ENSDISTILL_DEVICE uint32_t encode_word(const F16*, const float* x) {
    return __half_as_ushort(__float2half_rn(x[0])) | uint32_t(__half_as_ushort(__float2half_rn(x[1]))) << 16;
  }
};

// Where a kernel writes a row. The span is cut so that its whole vectors are aligned here.
template <class T>
struct Sink {
  static constexpr int V = Traits<T>::vector;
  T* row;

  ENSDISTILL_DEVICE Sink(void* base, Element, int64_t offset) : row(base ? static_cast<T*>(base) + offset : nullptr) {}
  ENSDISTILL_DEVICE void store(const Span<V>& span, int v, const float* x) const {
    using Store = Packed<T, V>;
    const Store packed = Store::encode(x);
    const int first = span.first(v);
    if (span.whole(first)) {
      *reinterpret_cast<uint4*>(row + first) = make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]);
      return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (span.inside(first + j)) row[first + j] = T(x[j]);
  }
};
template <>
struct Sink<Any> {
  void* base;
  Element type;
  int64_t offset;

  ENSDISTILL_DEVICE Sink(void* base, Element type, int64_t offset) : base(base), type(type), offset(offset) {}
  ENSDISTILL_DEVICE void store(const Span<1>& span, int v, const double* x) const {
    const int64_t i = offset + span.first(v);
    switch (type) {
      case Element::f64: static_cast<double*>(base)[i] = *x; return;
      case Element::f32: static_cast<float*>(base)[i] = float(*x); return;
      case Element::bf16: static_cast<Bf16*>(base)[i] = __double2bfloat16(*x); return;
      default: static_cast<F16*>(base)[i] = __double2half(*x); return;
    }
  }
};

}  // namespace ensdistill::cuda
