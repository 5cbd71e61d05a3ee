// CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and RocksDB, with the processor's instruction where it has one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ensdistill::shards {

uint32_t crc32c(const uint8_t* data, size_t size);
uint32_t crc32c_software(const uint8_t* data, size_t size);  // the reference of the instruction's test
const char* crc32c_implementation();

}  // namespace ensdistill::shards
