// Class ids in ascending order (of draws, with repetitions) and a small code for each, as one string of bits, the lowest
// bit of a byte first. The ids are in Elias's and Fano's form, which takes about 2 + log2(C / k) bits for each of k ids of
// C classes:
//   k + ((C - 1) >> low) bits: bit (id_i >> low) + i is set for the i-th id;
//   k times low bits: the low bits of each id;
//   k times width bits: each code.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ensdistill::shards {

struct SortedIds {
  size_t count;
  int64_t classes;
  int width;  // bits of a code

  // floor(log2(C / k)), at least 0.
  int low() const {
    int bits = 0;
    while (static_cast<int64_t>(count) << (bits + 1) <= classes) ++bits;
    return bits;
  }
  size_t high_bits() const { return count + static_cast<size_t>((classes - 1) >> low()); }
  size_t bytes() const { return (high_bits() + count * static_cast<size_t>(low() + width) + 7) / 8; }

  // ids: in order, below C. out: zeros.
  void pack(const int32_t* ids, const int32_t* codes, uint8_t* out) const {
    const int lows = low();
    size_t at = high_bits();
    for (size_t i = 0; i < count; ++i) {
      const size_t bit = (static_cast<size_t>(ids[i]) >> lows) + i;
      out[bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
    }
    for (size_t i = 0; i < count; ++i, at += lows) put(out, at, static_cast<uint32_t>(ids[i]), lows);
    for (size_t i = 0; i < count; ++i, at += width) put(out, at, static_cast<uint32_t>(codes[i]), width);
  }

  // False where the bits hold other than `count` ids in order.
  bool unpack(const uint8_t* packed, int32_t* ids, int32_t* codes) const {
    const int lows = low();
    const size_t high = high_bits(), total = bytes();
    size_t at = high, found = 0;
    for (size_t start = 0; start < high; start += 64) {
      uint64_t word = get(packed, total, start, static_cast<int>(std::min<size_t>(64, high - start)));
      for (; word; word &= word - 1) {
        if (found == count) return false;
        ids[found] = static_cast<int32_t>((start + static_cast<size_t>(__builtin_ctzll(word)) - found) << lows);
        ++found;
      }
    }
    if (found != count) return false;
    for (size_t i = 0; i < count; ++i, at += lows) {
      ids[i] |= static_cast<int32_t>(get(packed, total, at, lows));
      if (ids[i] >= classes || (i && ids[i] < ids[i - 1])) return false;
    }
    for (size_t i = 0; i < count; ++i, at += width) codes[i] = static_cast<int32_t>(get(packed, total, at, width));
    return true;
  }

 private:
  static void put(uint8_t* out, size_t at, uint32_t value, int bits) {
    uint64_t held = (static_cast<uint64_t>(value) & ((uint64_t{1} << bits) - 1)) << (at % 8);
    for (uint8_t* to = out + at / 8; held; held >>= 8) *to++ |= static_cast<uint8_t>(held);
  }

  // bits: at most 57, or 64 where `at` is a multiple of 8.
  static uint64_t get(const uint8_t* packed, size_t total, size_t at, int bits) {
    if (!bits) return 0;
    uint64_t held = 0;
    std::memcpy(&held, packed + at / 8, std::min<size_t>(8, total - at / 8));  // little-endian, as all of the cache
    held >>= at % 8;
    return bits == 64 ? held : held & ((uint64_t{1} << bits) - 1);
  }
};

}  // namespace ensdistill::shards
