// XXH3, 64 bits and seeded, of rows of equal length: the hashes of samples in a cache. The algorithm is Yann Collet's (xxHash, BSD 2-clause).
#pragma once
#include <cstddef>
#include <cstdint>

namespace ensdistill::shards {

// data: [rows, width], out: [rows]. The numbers of xxhash.xxh3_64_intdigest(row, seed), on little-endian machines.
void xxh3_rows(const uint8_t* data, size_t rows, size_t width, uint64_t seed, uint64_t* out);

}  // namespace ensdistill::shards
