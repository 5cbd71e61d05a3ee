// How numbers come from memory and go back: vectors of 128 bits where a row allows it, partial ones at its ends. A load
// delivers undecoded bits, so that it needn't be waited for; decoding is a step of its own.
#pragma once
#include <type_traits>

#include "../problem.h"
#include "../rowmath.h"
#include "hardware.cuh"

namespace ensdistill::cuda {

struct Any {};  // an element whose type is known at run time only: the double-precision plan, where speed doesn't matter

// The type in which a kernel for students of type T computes, and how many elements make a 16-byte access.
template <class T>
struct Traits {
  using Real = float;
  static constexpr int vector = 16 / sizeof(T);
};
template <>
struct Traits<Any> {
  using Real = double;
  static constexpr int vector = 1;
};

// A row cut into vectors whose starts are aligned in memory, the first and the last of which may be partial; those that
// one thread walks, step by step.
template <int V>
struct Span {
  int start, stride, classes, steps;

  // Single elements may begin anywhere and come around.
  ENSDISTILL_DEVICE int first(int step) const {
    const int c = start + step * stride;
    return V == 1 && c >= classes ? c - classes : c;
  }
  ENSDISTILL_DEVICE bool inside(int c) const { return unsigned(c) < unsigned(classes); }
  ENSDISTILL_DEVICE bool whole(int first) const { return V == 1 || (first >= 0 && first + V <= classes); }
};

// Turns a stored number into a logit.
template <class Real>
struct Decoding {
  Real step = 1, offset = 0, zero_value = 0;  // of codes
  bool probability = false;                   // its logarithm is the logit

  template <class T>
  ENSDISTILL_DEVICE Real operator()(Real x) const {
    return takes_log<T>() ? logarithm(x) : plain<T>(x);
  }
  // The same in two steps, of which the second is asked for once for many numbers.
  template <class T>
  ENSDISTILL_DEVICE Real plain(Real x) const {
    if constexpr (std::is_same_v<T, uint8_t>) return ensdistill::decode(x, step, offset, zero_value);
    return x;
  }
  template <class T>
  ENSDISTILL_DEVICE bool takes_log() const {
    return !std::is_same_v<T, uint8_t> && probability;
  }
};

// V elements as they come from memory.
template <class T, int V>
struct Packed {
  static constexpr int bytes = V * sizeof(T), per_word = sizeof(T) < 4 ? 4 / sizeof(T) : 1, words = (bytes + 3) / 4;
  uint32_t word[words];

  static ENSDISTILL_DEVICE uint32_t bits(const T* from) {
    if constexpr (sizeof(T) == 4) return __ldg(reinterpret_cast<const uint32_t*>(from));
    if constexpr (sizeof(T) == 2) return __ldg(reinterpret_cast<const uint16_t*>(from));
    if constexpr (sizeof(T) == 1) return __ldg(reinterpret_cast<const uint8_t*>(from));
  }
  ENSDISTILL_DEVICE void load(const T* from) {
    if constexpr (bytes >= 16) {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i) take(i, __ldg(reinterpret_cast<const uint4*>(from) + i));
    } else if constexpr (bytes == 8) {
      const uint2 w = __ldg(reinterpret_cast<const uint2*>(from));
      word[0] = w.x, word[1] = w.y;
    } else if constexpr (bytes == 4) {
      word[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    } else {
      word[0] = bits(from);
    }
  }
  ENSDISTILL_DEVICE void take(int i, const uint4& w) { word[4 * i] = w.x, word[4 * i + 1] = w.y, word[4 * i + 2] = w.z, word[4 * i + 3] = w.w; }
  // From any address, by the words that hold the elements, all under way at once.
  ENSDISTILL_DEVICE void load_words(const T* from) {
    const auto address = reinterpret_cast<uintptr_t>(from);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < words; ++i) word[i] = bits(from + i);
    } else {
      const auto* const first = reinterpret_cast<const uint32_t*>(address / 4 * 4);
      const unsigned shift = unsigned(address % 4) * 8;
      uint32_t last = shift ? __ldg(first + words) : 0;  // an aligned vector's last word may be the tensor's
#pragma unroll
      for (int i = 0; i < words; ++i) word[i] = __ldg(first + i);
#pragma unroll
      for (int i = 0; i < words; ++i) word[i] = __funnelshift_r(word[i], i + 1 < words ? word[i + 1] : last, shift);
    }
  }
  // To any address: words, and at an odd one a half at either end.
  ENSDISTILL_DEVICE void store_words(T* to) const {
    auto* at = reinterpret_cast<uint32_t*>(to);
    if (sizeof(T) == 4 || reinterpret_cast<uintptr_t>(to) % 4 == 0) {
#pragma unroll
      for (int i = 0; i < words; ++i) __stwb(at + i, word[i]);
      return;
    }
    auto* const halves = reinterpret_cast<uint16_t*>(to);
    __stwb(halves, uint16_t(word[0]));
    at = reinterpret_cast<uint32_t*>(halves + 1);
#pragma unroll
    for (int i = 0; i + 1 < words; ++i) __stwb(at + i, __funnelshift_r(word[i], word[i + 1], 16));
    __stwb(halves + 2 * words - 1, uint16_t(word[words - 1] >> 16));
  }
  // One by one: a vector at an end of the row. Elements outside the row read as zero bits. Rolled, each element pushed in from
  // the top: the rare path must not take registers from the usual one.
  ENSDISTILL_DEVICE void load_elements(const T* row, int first, const Span<V>& span) {
    constexpr int width = 32 / per_word;
#pragma unroll
    for (int i = 0; i < words; ++i) word[i] = 0;
#pragma unroll 1
    for (int j = 0; j < V; ++j) {
      const uint32_t next = span.inside(first + j) ? bits(row + first + j) : 0;
      if constexpr (V == 1) {
        word[0] = next;
      } else {
#pragma unroll
        for (int i = 0; i < words; ++i) {
          const uint32_t above = i + 1 < words ? word[i + 1] : next;
          word[i] = per_word == 1 ? above : __funnelshift_r(word[i], above, width);
        }
      }
    }
  }
  // To and from a thread's own place in shared memory, whose pieces of 16 bytes lie that many bytes apart; to device memory.
  ENSDISTILL_DEVICE void put(unsigned char* slot, int apart = 16) const {
    if constexpr (bytes >= 16) {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i)
        *reinterpret_cast<uint4*>(slot + i * apart) = make_uint4(word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]);
    } else if constexpr (bytes == 8) {
      *reinterpret_cast<uint2*>(slot) = make_uint2(word[0], word[1]);
    } else {
      *reinterpret_cast<uint32_t*>(slot) = word[0];
    }
  }
  ENSDISTILL_DEVICE void get(const unsigned char* slot, int apart = 16) {
    if constexpr (bytes >= 16) {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i) take(i, *reinterpret_cast<const uint4*>(slot + i * apart));
    } else if constexpr (bytes == 8) {
      const uint2 w = *reinterpret_cast<const uint2*>(slot);
      word[0] = w.x, word[1] = w.y;
    } else {
      word[0] = *reinterpret_cast<const uint32_t*>(slot);
    }
  }

  ENSDISTILL_DEVICE float at(int j) const { return number(word[j / per_word] >> (32 / per_word * (j % per_word))); }
  static ENSDISTILL_DEVICE float number(uint32_t b) {
    if constexpr (sizeof(T) == 1) return float(b & 0xffu);
    if constexpr (sizeof(T) == 4) return __uint_as_float(b);
    if constexpr (sizeof(T) == 2) return value(static_cast<const T*>(nullptr), uint16_t(b));
  }
  static ENSDISTILL_DEVICE float value(const Bf16*, uint16_t b) { return __uint_as_float(uint32_t(b) << 16); }
  static ENSDISTILL_DEVICE float value(const F16*, uint16_t b) { return __half2float(__ushort_as_half(b)); }

  static ENSDISTILL_DEVICE Packed encode(const float* x) {
    Packed packed;
#pragma unroll
    for (int i = 0; i < words; ++i) packed.word[i] = encode_word(static_cast<const T*>(nullptr), x + i * per_word);
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

// --- readers: load(step), plain(bits, j) and takes_log() of one row, for one thread

// Vectors of a row in device memory.
template <class T, int V>
struct Source {
  using Bits = Packed<T, V>;
  static constexpr int width = Bits::bytes < 16 ? Bits::bytes : 16;  // of an access
  const T* row;
  const Span<V>* span;
  int apart;          // bytes from a boundary of that width to each vector
  int before, after;  // elements that the words around a vector hold besides: these have to be the row's, too
  Decoding<float> decoding;

  ENSDISTILL_DEVICE Source(const T* row, const Span<V>& span, const Decoding<float>& decoding) : row(row), span(&span), decoding(decoding) {
    apart = int((reinterpret_cast<uintptr_t>(row) + uintptr_t(intptr_t(span.start)) * sizeof(T)) % width);
    before = apart % 4 / int(sizeof(T)), after = (4 - apart % 4) % 4 / int(sizeof(T));
  }
  // Elements from a boundary to the row's first.
  static ENSDISTILL_DEVICE int offset_of(const T* row) { return int(reinterpret_cast<uintptr_t>(row) % width / sizeof(T)); }
  // Whether a vector can be read without a question for each element.
  ENSDISTILL_DEVICE bool direct(int first) const { return first >= before && first + V + after <= span->classes; }
  ENSDISTILL_DEVICE Bits load(int step) const {
    const int first = span->first(step);
    Bits bits;
    if (!direct(first)) bits.load_elements(row, first, *span);
    else if (apart == 0) bits.load(row + first);
    else bits.load_words(row + first);
    return bits;
  }
  ENSDISTILL_DEVICE float plain(const Bits& bits, int j) const { return decoding.template plain<T>(bits.at(j)); }
  ENSDISTILL_DEVICE bool takes_log() const { return decoding.template takes_log<T>(); }
};

// The same vectors, once they are in the thread's column of shared memory. Of vectors of 32 bytes, all threads' first halves come before
// all second ones: neighbours' accesses of 16 bytes then have no bank in common.
template <class T, int V>
struct Shelf {
  using Bits = Packed<T, V>;
  static constexpr int piece = Bits::bytes < 16 ? Bits::bytes : 16;
  unsigned char* column;
  Decoding<float> decoding;

  ENSDISTILL_DEVICE int apart() const { return int(blockDim.x) * piece; }
  ENSDISTILL_DEVICE unsigned char* slot(int step) const { return column + size_t(step) * blockDim.x * Bits::bytes; }
  ENSDISTILL_DEVICE Bits load(int step) const {
    Bits bits;
    bits.get(slot(step), apart());
    return bits;
  }
  ENSDISTILL_DEVICE float plain(const Bits& bits, int j) const { return decoding.template plain<T>(bits.at(j)); }
  ENSDISTILL_DEVICE bool takes_log() const { return decoding.template takes_log<T>(); }

  // For a shelf of floats: a thread's own numbers.
  ENSDISTILL_DEVICE void get_numbers(int step, float* x) const {
    const Bits bits = load(step);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = bits.at(j);
  }
  ENSDISTILL_DEVICE void put_numbers(int step, const float* x) const { Bits::encode(x).put(slot(step), apart()); }

  // Begins to bring a row here; the thread has it when it has waited for the copies. Only the first and the last of a thread's vectors
  // can be at an end of the row. Vectors that begin at a word are copied word by word; others pass through registers.
  ENSDISTILL_DEVICE void bring(const Source<T, V>& source) const {
    int from = 0, to = source.span->steps;
#pragma unroll 1
    for (int end = 0; end < 2 && from < to; ++end) {
      const int step = end == 0 ? from : to - 1, first = source.span->first(step);
      if (source.direct(first)) continue;
      Bits bits;
      bits.load_elements(source.row, first, *source.span);
      bits.put(slot(step), apart());
      if (end == 0) ++from;
      else --to;
    }
    const T* at = source.row + source.span->first(from);
    unsigned char* put = slot(from);
    if (source.apart == 0) copy<Source<T, V>::width>(at, put, to - from, source.span->stride);
    else if (source.apart % 4 == 0) copy<4>(at, put, to - from, source.span->stride);
    else {
#pragma unroll 2
      for (; from < to; ++from, at += source.span->stride, put += blockDim.x * Bits::bytes) {
        Bits bits;
        bits.load_words(at);
        bits.put(put, apart());
      }
    }
    async_commit();
  }
  template <int kPiece>
  ENSDISTILL_DEVICE void copy(const T* at, unsigned char* put, int vectors, int stride) const {
#pragma unroll 4
    for (int n = 0; n < vectors; ++n, at += stride, put += blockDim.x * Bits::bytes) {
#pragma unroll
      for (int i = 0; i < Bits::bytes; i += kPiece)
        async_copy<kPiece>(put + i / piece * apart() + i % piece, reinterpret_cast<const unsigned char*>(at) + i);
    }
  }
};

// Single elements at any distance from each other, in device or in shared memory.
template <class T>
struct Elements {
  using Bits = float;
  const T* row;
  int64_t stride;
  const Span<1>* span;
  Decoding<float> decoding;

  ENSDISTILL_DEVICE float load(int step) const { return float_of(row[int64_t(span->first(step)) * stride]); }
  ENSDISTILL_DEVICE float plain(float x, int) const { return decoding.template plain<T>(x); }
  ENSDISTILL_DEVICE bool takes_log() const { return decoding.template takes_log<T>(); }
  static ENSDISTILL_DEVICE float float_of(float x) { return x; }
  static ENSDISTILL_DEVICE float float_of(Bf16 x) { return __bfloat162float(x); }
  static ENSDISTILL_DEVICE float float_of(F16 x) { return __half2float(x); }
  static ENSDISTILL_DEVICE float float_of(uint8_t x) { return float(x); }
};

ENSDISTILL_DEVICE double number_at(const void* data, Element type, int64_t i) {
  switch (type) {
    case Element::f64: return static_cast<const double*>(data)[i];
    case Element::f32: return static_cast<const float*>(data)[i];
    case Element::bf16: return __bfloat162float(static_cast<const Bf16*>(data)[i]);
    case Element::f16: return __half2float(static_cast<const F16*>(data)[i]);
    default: return static_cast<const uint8_t*>(data)[i];
  }
}

template <>
struct Elements<Any> {
  using Bits = double;
  const void* data;
  Element type;
  int64_t start, stride;
  const Span<1>* span;
  Decoding<double> decoding;

  ENSDISTILL_DEVICE double load(int step) const { return number_at(data, type, start + int64_t(span->first(step)) * stride); }
  ENSDISTILL_DEVICE double plain(double x, int) const { return type == Element::u8 ? decoding.template plain<uint8_t>(x) : x; }
  ENSDISTILL_DEVICE bool takes_log() const { return type != Element::u8 && decoding.probability; }
};

template <class T>
ENSDISTILL_DEVICE void put_number(T* at, float x) {
  if constexpr (std::is_same_v<T, float>) *at = x;
  if constexpr (std::is_same_v<T, Bf16>) *at = __float2bfloat16_rn(x);
  if constexpr (std::is_same_v<T, F16>) *at = __float2half_rn(x);
}

ENSDISTILL_DEVICE void put_number_at(void* data, Element type, int64_t i, double x) {
  switch (type) {
    case Element::f64: static_cast<double*>(data)[i] = x; return;
    case Element::f32: static_cast<float*>(data)[i] = float(x); return;
    case Element::bf16: static_cast<Bf16*>(data)[i] = __double2bfloat16(x); return;
    default: static_cast<F16*>(data)[i] = __double2half(x); return;
  }
}

}  // namespace ensdistill::cuda
