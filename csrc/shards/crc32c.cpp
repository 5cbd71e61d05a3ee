#include "crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace ensdistill::shards {
namespace {

constexpr uint32_t POLYNOMIAL = 0x82f63b78;  // reflected
using Table = std::array<uint32_t, 256>;

// tables[j][b]: byte b, followed by j bytes of zero.
std::array<Table, 8> make_tables() {
  std::array<Table, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? POLYNOMIAL : 0);
    tables[0][b] = crc;
  }
  for (uint32_t b = 0; b < 256; ++b)
    for (int j = 1; j < 8; ++j) tables[j][b] = (tables[j - 1][b] >> 8) ^ tables[0][tables[j - 1][b] & 255];
  return tables;
}
const std::array<Table, 8> TABLES = make_tables();

inline uint64_t load(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return word;
}

uint32_t update_software(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t word = load(data) ^ crc;
    crc = 0;
    for (int j = 0; j < 8; ++j) crc ^= TABLES[7 - j][(word >> (8 * j)) & 255];
  }
  for (; size; ++data, --size) crc = (crc >> 8) ^ TABLES[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__x86_64__) || (defined(__aarch64__) && defined(__ARM_FEATURE_CRC32))
#if defined(__x86_64__)
#define ENSDISTILL_CRC_TARGET __attribute__((target("sse4.2")))
ENSDISTILL_CRC_TARGET inline uint32_t step8(uint32_t crc, uint64_t word) { return static_cast<uint32_t>(_mm_crc32_u64(crc, word)); }
ENSDISTILL_CRC_TARGET inline uint32_t step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
#else
#define ENSDISTILL_CRC_TARGET
inline uint32_t step8(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
bool has_instruction() { return true; }
#endif

// The instruction takes three cycles but one can start in each: three lanes side by side, joined afterwards.
constexpr size_t LANE = 4096;

// shift[j][b]: the CRC after byte j = b of a CRC, when LANE bytes of zero follow; a CRC is linear over GF(2).
std::array<Table, 4> make_shift() {
  static const std::array<uint8_t, LANE> zeros{};
  std::array<Table, 4> shift{};
  for (int j = 0; j < 4; ++j) {
    std::array<uint32_t, 8> bits{};
    for (int bit = 0; bit < 8; ++bit) bits[bit] = update_software(1u << (8 * j + bit), zeros.data(), LANE);
    for (uint32_t b = 0; b < 256; ++b)
      for (int bit = 0; bit < 8; ++bit) shift[j][b] ^= (b >> bit & 1) ? bits[bit] : 0;
  }
  return shift;
}
const std::array<Table, 4> SHIFT = make_shift();

inline uint32_t shifted(uint32_t crc) { return SHIFT[0][crc & 255] ^ SHIFT[1][crc >> 8 & 255] ^ SHIFT[2][crc >> 16 & 255] ^ SHIFT[3][crc >> 24]; }

ENSDISTILL_CRC_TARGET uint32_t update_hardware(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 3 * LANE; data += 3 * LANE, size -= 3 * LANE) {
    uint32_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < LANE; i += 8) {
      a = step8(a, load(data + i));
      b = step8(b, load(data + LANE + i));
      c = step8(c, load(data + 2 * LANE + i));
    }
    crc = shifted(shifted(a) ^ b) ^ c;
  }
  for (; size >= 8; data += 8, size -= 8) crc = step8(crc, load(data));
  for (; size; ++data, --size) crc = step1(crc, *data);
  return crc;
}
#else
bool has_instruction() { return false; }
uint32_t update_hardware(uint32_t crc, const uint8_t* data, size_t size) { return update_software(crc, data, size); }
#endif

const bool HARDWARE = has_instruction();

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t size) { return ~(HARDWARE ? update_hardware : update_software)(~0u, data, size); }
uint32_t crc32c_software(const uint8_t* data, size_t size) { return ~update_software(~0u, data, size); }
const char* crc32c_implementation() { return HARDWARE ? "instruction" : "software"; }

}  // namespace ensdistill::shards
