// The native reader alone, given files and sizes that lie; built with the address and undefined-behaviour sanitizers.
//   reader_fuzzer ROUNDS SEED FOLDER                     random rounds
//   reader_fuzzer -runs=ROUNDS [CORPUS]                  by coverage: clang++ -fsanitize=fuzzer -DENSDISTILL_LIBFUZZER
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>

#include "../../csrc/shards/bits.h"
#include "../../csrc/shards/crc32c.h"
#include "../../csrc/shards/reader.h"

using namespace ensdistill::shards;

namespace {
// Choices come from the bytes that a fuzzer gives, as long as there are some, then from a generator.
struct Choices {
  std::mt19937_64 random;
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;

  uint64_t operator()() {
    if (at == end) return random();
    uint64_t value = 0;
    for (int i = 0; i < 8 && at != end; ++i) value = value << 8 | *at++;
    return value;
  }
} generator;
long refused = 0, damaged = 0, gathered = 0;

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }
// Mostly the right number, else one near it, or one at an edge of its type's range.
int64_t nearly(int64_t right) {
  switch (below(60)) {
    case 0: return right + below(5) - 2;
    case 1: return -right;
    case 2: return int64_t{1} << below(63);
    case 3: return INT64_MAX - below(3);
    case 4: return 0;
    default: return right;
  }
}
// One file and a gather from it; 0 if all went as it should.
int one(const std::string& path) {
  const int64_t rows = 1 + below(40), width = 8 * (1 + below(40)), block = 64 << below(4), begin = 64 * (1 + below(3));
  const bool sequences = below(2);
  std::vector<uint64_t> offsets{0};
  for (int64_t row = 0; row < rows; ++row) offsets.push_back(offsets.back() + (sequences ? 1 + below(4) : 1));
  const int64_t records = static_cast<int64_t>(offsets.back());
  std::vector<uint8_t> data(records * width);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(generator.random());  // of no interest: choices are
  if (sequences) {
    if (below(4) == 0) offsets[below(rows + 1)] = generator() >> below(64);
    const auto* bytes = reinterpret_cast<const uint8_t*>(offsets.data());
    data.insert(data.end(), bytes, bytes + 8 * offsets.size());
  }
  std::vector<uint32_t> sums;
  for (size_t at = 0; at < data.size(); at += block) sums.push_back(crc32c(data.data() + at, std::min<size_t>(block, data.size() - at)));
  if (below(8) == 0) sums.resize(below(sums.size() + 3));
  if (below(4) == 0) data[below(data.size())] ^= 1 << below(8);
  data.insert(data.begin(), begin, 0);
  if (below(8) == 0) data.resize(below(data.size() + 100));
  const int out = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (out < 0 || write(out, data.data(), data.size()) != static_cast<ssize_t>(data.size())) return 3;
  close(out);
  const int fd = open(path.c_str(), O_RDONLY);
  const auto size = static_cast<int64_t>(data.size());
  try {
    Reader reader(below(10) ? width : nearly(width), below(10) ? rows : nearly(rows), 2, block, sequences, below(20) ? 1 : 3);
    if (reader.map(below(20) ? 0 : nearly(1), fd, {nearly(size), nearly(begin), nearly(records), nearly(rows)}, sums)) {
      ++damaged;
    } else {
      std::vector<int64_t> ids(below(60)), lengths(ids.size());
      for (int64_t& id : ids) id = below(1000) ? below(rows) : nearly(rows);
      reader.missing(ids.data(), static_cast<int64_t>(ids.size()));
      reader.lengths(ids.data(), static_cast<int64_t>(ids.size()), lengths.data());
      int64_t total = 0;
      for (int64_t length : lengths) total += length;
      std::vector<uint8_t> to(total * width);
      if (reader.gather(ids.data(), static_cast<int64_t>(ids.size()), to.data(), static_cast<int64_t>(to.size()))) ++damaged;
      else ++gathered;
    }
  } catch (const std::invalid_argument&) {
    ++refused;
  } catch (const std::out_of_range&) {
    ++refused;
  }
  close(fd);
  const int bits = 1 + static_cast<int>(below(32));
  std::vector<int32_t> numbers(below(50)), back(numbers.size());
  for (int32_t& number : numbers) number = static_cast<int32_t>(generator() & ((uint64_t{1} << bits) - 1));
  std::vector<uint8_t> packed(packed_bytes(numbers.size(), bits));
  pack(numbers.data(), numbers.size(), bits, packed.data());
  unpack(packed.data(), numbers.size(), bits, back.data());
  if (numbers != back) return 4;
  return 0;
}
}  // namespace

#ifdef ENSDISTILL_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/tmp/ensdistill-reader-fuzzer-" + std::to_string(getpid());
  generator.random.seed(1);
  generator.at = data;
  generator.end = data + size;
  if (one(path) != 0) std::abort();
  return 0;
}
#else
int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const long rounds = std::atol(argv[1]);
  generator.random.seed(std::strtoull(argv[2], nullptr, 10));
  const std::string path = std::string(argv[3]) + "/shard";
  for (long round = 0; round < rounds; ++round)
    if (const int wrong = one(path)) return wrong;
  std::printf("{\"fuzzed\": %ld, \"refused\": %ld, \"damaged\": %ld, \"gathered\": %ld}\n", rounds, refused, damaged, gathered);
  return 0;
}
#endif
