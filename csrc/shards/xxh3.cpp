#include "xxh3.h"

#include <cstring>

// The same code is compiled for several processors.
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace ensdistill::shards {
namespace {

constexpr size_t SECRET = 192, SECRET_MIN = 136, STRIPE = 64, SHORT = 240;
constexpr size_t STRIPES = (SECRET - STRIPE) / 8;  // of a block, each with the secret eight bytes further
constexpr uint32_t P32_1 = 0x9E3779B1, P32_2 = 0x85EBCA77, P32_3 = 0xC2B2AE3D;
constexpr uint64_t P64_1 = 0x9E3779B185EBCA87, P64_2 = 0xC2B2AE3D27D4EB4F, P64_3 = 0x165667B19E3779F9, P64_4 = 0x85EBCA77C2B2AE63,
                   P64_5 = 0x27D4EB2F165667C5, MX1 = 0x165667919E3779F9, MX2 = 0x9FB21C651E98DF25;

alignas(64) constexpr uint8_t PLAIN[SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb,
    0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc,
    0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

inline uint32_t load32(const uint8_t* data) {
  uint32_t word;
  std::memcpy(&word, data, 4);
  return word;
}

inline uint64_t load64(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return word;
}

inline uint64_t shifted(uint64_t x, int bits) { return x ^ (x >> bits); }
inline uint64_t rotated(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

// The halves of the 128-bit product, by exclusive or.
inline uint64_t folded(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t avalanche(uint64_t x) { return shifted(shifted(x, 37) * MX1, 32); }

inline uint64_t avalanche64(uint64_t x) { return shifted(shifted(shifted(x, 33) * P64_2, 29) * P64_3, 32); }

inline uint64_t mix16(const uint8_t* data, const uint8_t* secret, uint64_t seed) {
  return folded(load64(data) ^ (load64(secret) + seed), load64(data + 8) ^ (load64(secret + 8) - seed));
}

uint64_t up_to_16(const uint8_t* data, size_t size, uint64_t seed) {
  if (size > 8) {
    const uint64_t low = load64(data) ^ ((load64(PLAIN + 24) ^ load64(PLAIN + 32)) + seed);
    const uint64_t high = load64(data + size - 8) ^ ((load64(PLAIN + 40) ^ load64(PLAIN + 48)) - seed);
    return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
  }
  if (size >= 4) {
    seed ^= static_cast<uint64_t>(__builtin_bswap32(static_cast<uint32_t>(seed))) << 32;
    const uint64_t both = load32(data + size - 4) + (static_cast<uint64_t>(load32(data)) << 32);
    uint64_t x = both ^ ((load64(PLAIN + 8) ^ load64(PLAIN + 16)) - seed);
    x = (x ^ rotated(x, 49) ^ rotated(x, 24)) * MX2;
    return shifted((x ^ ((x >> 35) + size)) * MX2, 28);
  }
  if (size) {
    const uint32_t bytes =
        (static_cast<uint32_t>(data[0]) << 16) | (static_cast<uint32_t>(data[size >> 1]) << 24) | data[size - 1] | (static_cast<uint32_t>(size) << 8);
    return avalanche64(bytes ^ ((load32(PLAIN) ^ load32(PLAIN + 4)) + seed));
  }
  return avalanche64(seed ^ load64(PLAIN + 56) ^ load64(PLAIN + 64));
}

uint64_t up_to_128(const uint8_t* data, size_t size, uint64_t seed) {
  uint64_t sum = size * P64_1;
  for (size_t i = (size - 1) / 32 + 1; i-- > 0;)
    sum += mix16(data + 16 * i, PLAIN + 32 * i, seed) + mix16(data + size - 16 * (i + 1), PLAIN + 32 * i + 16, seed);
  return avalanche(sum);
}

uint64_t up_to_240(const uint8_t* data, size_t size, uint64_t seed) {
  uint64_t sum = size * P64_1;
  for (size_t i = 0; i < 8; ++i) sum += mix16(data + 16 * i, PLAIN + 16 * i, seed);
  sum = avalanche(sum) + mix16(data + size - 16, PLAIN + SECRET_MIN - 17, seed);
  for (size_t i = 8; i < size / 16; ++i) sum += mix16(data + 16 * i, PLAIN + 16 * (i - 8) + 3, seed);
  return avalanche(sum);
}

// Half of the eight sums: one register of AVX2, two of narrower ones.
using Lanes = uint64_t __attribute__((vector_size(32)));

ALWAYS_INLINE void load(Lanes& to, const uint8_t* data) { std::memcpy(&to, data, sizeof(to)); }

ALWAYS_INLINE void accumulate(Lanes& sums, const uint8_t* data, const uint8_t* secret) {
  Lanes words, key, swapped;
  load(words, data);
  load(key, secret);
  key ^= words;
#if defined(__clang__)
  swapped = __builtin_shufflevector(words, words, 1, 0, 3, 2);
#else
  swapped = __builtin_shuffle(words, Lanes{1, 0, 3, 2});
#endif
  sums += swapped + (key & 0xFFFFFFFF) * (key >> 32);
}

// secret: already that of the seed.
ALWAYS_INLINE void longer(const uint8_t* data, size_t rows, size_t size, const uint8_t* secret, uint64_t* out) {
  Lanes last_low, last_high;
  load(last_low, secret + SECRET - STRIPE);
  load(last_high, secret + SECRET - STRIPE + 32);
  for (size_t row = 0; row < rows; ++row, data += size) {
    Lanes low = {P32_3, P64_1, P64_2, P64_3}, high = {P64_4, P32_2, P64_5, P32_1};
    const uint8_t *end = data + size, *at = data;
    const auto stripe = [&](const uint8_t* from, const uint8_t* key) __attribute__((always_inline)) {
      accumulate(low, from, key);
      accumulate(high, from + 32, key + 32);
    };
    for (size_t blocks = (size - 1) / (STRIPE * STRIPES); blocks; --blocks) {
      for (size_t i = 0; i < STRIPES; ++i, at += STRIPE) stripe(at, secret + 8 * i);
      low = (low ^ (low >> 47) ^ last_low) * P32_1;
      high = (high ^ (high >> 47) ^ last_high) * P32_1;
    }
    const size_t stripes = (static_cast<size_t>(end - at) - 1) / STRIPE;
    for (size_t i = 0; i < stripes; ++i, at += STRIPE) stripe(at, secret + 8 * i);
    stripe(end - STRIPE, secret + SECRET - STRIPE - 7);
    uint64_t sum = size * P64_1;
    for (int i = 0; i < 2; ++i) {
      sum += folded(low[2 * i] ^ load64(secret + 11 + 16 * i), low[2 * i + 1] ^ load64(secret + 19 + 16 * i));
      sum += folded(high[2 * i] ^ load64(secret + 43 + 16 * i), high[2 * i + 1] ^ load64(secret + 51 + 16 * i));
    }
    out[row] = avalanche(sum);
  }
}

using Longer = void(const uint8_t* data, size_t rows, size_t size, const uint8_t* secret, uint64_t* out);

void longer_plain(const uint8_t* data, size_t rows, size_t size, const uint8_t* secret, uint64_t* out) { longer(data, rows, size, secret, out); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) void longer_avx2(const uint8_t* data, size_t rows, size_t size, const uint8_t* secret, uint64_t* out) {
  longer(data, rows, size, secret, out);
}

Longer* const LONGER = __builtin_cpu_supports("avx2") ? longer_avx2 : longer_plain;
#else
Longer* const LONGER = longer_plain;
#endif

}  // namespace

void xxh3_rows(const uint8_t* data, size_t rows, size_t width, uint64_t seed, uint64_t* out) {
  if (width <= SHORT) {
    const auto hash = width <= 16 ? up_to_16 : width <= 128 ? up_to_128 : up_to_240;
    for (size_t i = 0; i < rows; ++i) out[i] = hash(data + i * width, width, seed);
    return;
  }
  alignas(64) uint8_t secret[SECRET];
  for (size_t i = 0; i < SECRET; i += 16) {
    const uint64_t low = load64(PLAIN + i) + seed, high = load64(PLAIN + i + 8) - seed;
    std::memcpy(secret + i, &low, 8);
    std::memcpy(secret + i + 8, &high, 8);
  }
  LONGER(data, rows, width, secret, out);
}

}  // namespace ensdistill::shards
