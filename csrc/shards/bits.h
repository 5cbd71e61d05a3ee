// Numbers of a fixed number of bits, packed without gaps, the lowest bit first: class ids in ceil(log2 C) bits.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ensdistill::shards {

inline size_t packed_bytes(size_t count, int bits) { return (count * bits + 7) / 8; }

// bits: 1 to 32. The values have to fit; higher bits are dropped.
inline void pack(const int32_t* values, size_t count, int bits, uint8_t* out) {
  uint64_t held = 0;
  int filled = 0;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (size_t i = 0; i < count; ++i) {
    held |= (static_cast<uint64_t>(static_cast<uint32_t>(values[i])) & mask) << filled;
    for (filled += bits; filled >= 8; filled -= 8, held >>= 8) *out++ = static_cast<uint8_t>(held);
  }
  if (filled) *out = static_cast<uint8_t>(held);
}

inline void unpack(const uint8_t* packed, size_t count, int bits, int32_t* out) {
  uint64_t held = 0;
  int filled = 0;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (size_t i = 0; i < count; ++i) {
    for (; filled < bits; filled += 8) held |= static_cast<uint64_t>(*packed++) << filled;
    out[i] = static_cast<int32_t>(held & mask);
    held >>= bits, filled -= bits;
  }
}

}  // namespace ensdistill::shards
