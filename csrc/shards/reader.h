// Shards of a target cache: mapped, every block compared with its checksum before a byte of it is handed out, records gathered
// by uid on threads. Knows no tensors and no Python; module.cpp binds it.
//
// A shard's file: header (JSON, compared by the caller) | records | offsets (u64, sequences only) | CRC-32C of each block (u32).
// The blocks divide records and offsets; the caller has compared the table of checksums with the manifest's hash of it.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "divisor.h"
#include "pool.h"

namespace ensdistill::shards {

// Where a shard's parts lie, in bytes from the start of the file.
struct Parts {
  int64_t file_bytes, data_begin, records, rows;  // records: of the shard; rows: its samples, the same without sequences
};

class Mapping {
 public:
  // Maps fd, which stays the caller's. Throws std::invalid_argument where the parts don't fit the file.
  Mapping(int fd, const Parts& parts, int64_t record_bytes, int64_t block_bytes, bool sequences, std::vector<uint32_t> checksums);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const uint8_t* data() const { return file_ + parts_.data_begin; }
  int64_t rows() const { return parts_.rows; }
  // First record and number of records of a sample. Offsets were checked when the shard was mapped.
  std::pair<int64_t, int64_t> sample(int64_t row) const;
  // The first block in [begin, end) of the data that is not as it was written, or -1.
  int64_t damaged(int64_t begin, int64_t end);
  // Whether all of [begin, end) has been compared with its checksums; reads the blocks that have not been read before.
  bool sound(int64_t begin, int64_t end) {
    int64_t block = block_(begin);
    for (int64_t at = block * block_.by(); at < end; at += block_.by(), ++block)
      if (state_[block].load(std::memory_order_relaxed) != SOUND) return want(begin, end), false;
    return true;
  }

 private:
  void want(int64_t begin, int64_t end);

  Parts parts_;
  Divisor block_;
  int64_t data_bytes_;
  const uint8_t* file_ = nullptr;
  std::vector<uint32_t> checksums_;
  enum State : uint8_t { UNREAD, WANTED, SOUND };
  std::vector<std::atomic<uint8_t>> state_;  // of each block; two threads that check one at once do no harm
  std::vector<uint64_t> offsets_;            // [rows + 1], sequences only
};

struct Damage {
  int64_t shard, begin, end;  // bytes of the data
};

class Reader {
 public:
  Reader(int64_t record_bytes, int64_t shard_rows, int64_t shards, int64_t block_bytes, bool sequences, int threads);
  ~Reader();

  // The distinct shards of these ids that are not mapped. An id is shard * shard_rows + row.
  std::vector<int64_t> missing(const int64_t* ids, int64_t count) const;
  std::optional<Damage> map(int64_t shard, int fd, const Parts& parts, std::vector<uint32_t> checksums);
  void unmap_all();
  int64_t mapped() const;

  // Records of each sample [count]; 1 without sequences.
  void lengths(const int64_t* ids, int64_t count, int64_t* out) const;
  // Copies the records of the samples, one after the other, to out, which has room for exactly these.
  std::optional<Damage> gather(const int64_t* ids, int64_t count, uint8_t* out, int64_t out_bytes);

 private:
  // State that a fork leaves unusable in the child: threads, and locks that they may have held.
  struct Running {
    explicit Running(int threads) : pool(threads) {}
    mutable std::shared_mutex lock;
    Pool pool;
  };
  Running& running() const;
  std::pair<Mapping*, int64_t> at(int64_t id) const;  // and the row in it

  int64_t record_bytes_, block_bytes_;
  Divisor shard_rows_;
  bool sequences_;
  int threads_;
  std::vector<std::unique_ptr<Mapping>> shards_;
  mutable std::mutex starting_;
  mutable std::unique_ptr<Running> running_;
  mutable pid_t owner_ = 0;
};

}  // namespace ensdistill::shards
