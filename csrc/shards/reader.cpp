#include "reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

#include "crc32c.h"

namespace ensdistill::shards {
namespace {

// Below this a thread costs more than it copies.
constexpr int64_t BYTES_PER_THREAD = 1 << 18;
// How many records ahead memory is prefetched: small records need many on their way at once.
constexpr int64_t AHEAD = 16;

void require(bool sound, const char* what) {
  if (!sound) throw std::invalid_argument(what);
}

}  // namespace

Mapping::Mapping(int fd, const Parts& parts, int64_t record_bytes, int64_t block_bytes, bool sequences, std::vector<uint32_t> checksums)
    : parts_(parts), block_(block_bytes), checksums_(std::move(checksums)) {
  require(record_bytes > 0 && block_bytes > 0, "record and block: expected at least one byte");
  require(parts.rows > 0 && parts.records >= parts.rows && (sequences || parts.records == parts.rows), "records: expected one for each row");
  // Divisions, because a product of a file's numbers can overflow.
  require(parts.data_begin > 0 && parts.data_begin < parts.file_bytes, "data_begin: expected a place within the file");
  const int64_t room = parts.file_bytes - parts.data_begin;
  require(parts.records <= room / record_bytes, "records: more than the file holds");
  data_bytes_ = parts.records * record_bytes;
  require(!sequences || parts.rows < (room - data_bytes_) / 8, "offsets: more than the file holds");
  const int64_t offsets_at = data_bytes_;
  if (sequences) data_bytes_ += (parts.rows + 1) * 8;
  const int64_t blocks = (data_bytes_ + block_bytes - 1) / block_bytes;
  require(static_cast<int64_t>(checksums_.size()) == blocks, "checksums: expected one for each block");
  struct stat status;
  if (fstat(fd, &status) != 0) throw std::system_error(errno, std::generic_category(), "fstat");
  require(S_ISREG(status.st_mode) && status.st_size == parts.file_bytes, "file: expected a regular file of the stated size");
  state_ = std::vector<std::atomic<uint8_t>>(blocks);
  void* file = mmap(nullptr, parts.file_bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (file == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  file_ = static_cast<const uint8_t*>(file);
  if (sequences && damaged(offsets_at, data_bytes_) < 0) {
    offsets_.resize(parts.rows + 1);
    std::memcpy(offsets_.data(), data() + offsets_at, (parts.rows + 1) * 8);
    const uint64_t records = parts.records;
    bool rising = offsets_.front() == 0 && offsets_.back() == records;
    for (int64_t row = 0; row < parts.rows && rising; ++row) rising = offsets_[row] < offsets_[row + 1];
    if (!rising) {
      munmap(file, parts.file_bytes);
      throw std::invalid_argument("offsets: expected them to rise from 0 to the number of records");
    }
  }
}

Mapping::~Mapping() { munmap(const_cast<uint8_t*>(file_), parts_.file_bytes); }

std::pair<int64_t, int64_t> Mapping::sample(int64_t row) const {
  if (offsets_.empty()) return {row, 1};
  return {static_cast<int64_t>(offsets_[row]), static_cast<int64_t>(offsets_[row + 1] - offsets_[row])};
}

int64_t Mapping::damaged(int64_t begin, int64_t end) {
  const int64_t size = block_.by();
  for (int64_t block = block_(begin); block * size < end; ++block) {
    if (state_[block].load(std::memory_order_relaxed) == SOUND) continue;
    const int64_t at = block * size;
    if (crc32c(data() + at, std::min(size, data_bytes_ - at)) != checksums_[block]) return block;
    state_[block].store(SOUND, std::memory_order_relaxed);
  }
  return -1;
}

void Mapping::want(int64_t begin, int64_t end) {
  const int64_t size = block_.by();
  for (int64_t block = block_(begin); block * size < end; ++block) {
    // Once only: most records of a batch share their blocks with others.
    uint8_t unread = UNREAD;
    if (!state_[block].compare_exchange_strong(unread, WANTED, std::memory_order_relaxed)) continue;
    const uintptr_t page = ~static_cast<uintptr_t>(4095);
    const uintptr_t from = reinterpret_cast<uintptr_t>(data() + block * size) & page;
    const int64_t bytes = std::min(size, data_bytes_ - block * size);
    madvise(reinterpret_cast<void*>(from), bytes, MADV_WILLNEED);  // only a hint
  }
}

Reader::Reader(int64_t record_bytes, int64_t shard_rows, int64_t shards, int64_t block_bytes, bool sequences, int threads)
    : record_bytes_(record_bytes), block_bytes_(block_bytes), shard_rows_(shard_rows), sequences_(sequences), threads_(threads) {
  require(record_bytes > 0 && shard_rows > 0 && shards > 0 && block_bytes > 0 && threads > 0, "Reader: expected positive sizes");
  shards_.resize(shards);
}

// In a forked child the threads are gone, and joining them would wait for ever.
Reader::~Reader() {
  if (owner_ != getpid()) static_cast<void>(running_.release());
}

Reader::Running& Reader::running() const {
  std::lock_guard lock(starting_);
  const pid_t here = getpid();
  if (owner_ != here) {
    static_cast<void>(running_.release());
    running_ = std::make_unique<Running>(threads_);
    owner_ = here;
  }
  return *running_;
}

std::vector<int64_t> Reader::missing(const int64_t* ids, int64_t count) const {
  std::shared_lock lock(running().lock);
  std::vector<int64_t> found;
  for (int64_t i = 0; i < count; ++i) {
    require(ids[i] >= 0 && shard_rows_(ids[i]) < static_cast<int64_t>(shards_.size()), "ids: outside of the shards");
    if (!shards_[shard_rows_(ids[i])]) found.push_back(shard_rows_(ids[i]));
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::optional<Damage> Reader::map(int64_t shard, int fd, const Parts& parts, std::vector<uint32_t> checksums) {
  require(shard >= 0 && shard < static_cast<int64_t>(shards_.size()), "shard: out of range");
  auto mapping = std::make_unique<Mapping>(fd, parts, record_bytes_, block_bytes_, sequences_, std::move(checksums));
  if (sequences_) {
    const int64_t at = parts.records * record_bytes_;
    if (mapping->damaged(at, at + 8) >= 0 || mapping->damaged(at, at + (parts.rows + 1) * 8) >= 0)
      return Damage{shard, at, at + (parts.rows + 1) * 8};
  }
  std::unique_lock lock(running().lock);
  if (!shards_[shard]) shards_[shard] = std::move(mapping);  // another thread may have been first
  return std::nullopt;
}

void Reader::unmap_all() {
  std::unique_lock lock(running().lock);
  for (auto& shard : shards_) shard.reset();
}

int64_t Reader::mapped() const {
  std::shared_lock lock(running().lock);
  return std::count_if(shards_.begin(), shards_.end(), [](const auto& shard) { return shard != nullptr; });
}

std::pair<Mapping*, int64_t> Reader::at(int64_t id) const {
  require(id >= 0, "ids: outside of the shards");
  const int64_t shard = shard_rows_(id), row = id - shard * shard_rows_.by();
  require(shard < static_cast<int64_t>(shards_.size()), "ids: outside of the shards");
  Mapping* mapping = shards_[shard].get();
  if (mapping == nullptr) throw std::out_of_range("ids: their shard is not mapped");
  require(row < mapping->rows(), "ids: outside of their shard");
  return {mapping, row};
}

void Reader::lengths(const int64_t* ids, int64_t count, int64_t* out) const {
  std::shared_lock lock(running().lock);
  for (int64_t i = 0; i < count; ++i) {
    const auto [from, row] = at(ids[i]);
    out[i] = from->sample(row).second;
  }
}

std::optional<Damage> Reader::gather(const int64_t* ids, int64_t count, uint8_t* out, int64_t out_bytes) {
  Running& here = running();
  std::shared_lock lock(here.lock);
  struct Piece {
    Mapping* from;
    int64_t id, begin, bytes, to;
  };
  std::vector<Piece> pieces(count);
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto [from, row] = at(ids[i]);
    const auto [first, records] = from->sample(row);
    pieces[i] = {from, ids[i], first * record_bytes_, records * record_bytes_, total};
    total += pieces[i].bytes;
  }
  require(total == out_bytes, "out: expected room for exactly the records asked for");

  std::atomic<int64_t> bad{count};  // the first piece, so that the error is the same on any number of threads
  const auto work = [&](int64_t begin, int64_t end) {
    bool sound = true;  // once and for all: blocks don't become unread again
    for (int64_t i = begin; i < end; ++i) sound &= pieces[i].from->sound(pieces[i].begin, pieces[i].begin + pieces[i].bytes);
    for (int64_t i = begin; i < end; ++i) {
      const Piece& p = pieces[i];
      if (i + AHEAD < end) {  // the start of a record to come; the processor's own prefetcher follows from there
        const uint8_t* next = pieces[i + AHEAD].from->data() + pieces[i + AHEAD].begin;
        for (int64_t line = 0; line < std::min<int64_t>(pieces[i + AHEAD].bytes, 512); line += 64) __builtin_prefetch(next + line);
      }
      if (!sound && p.from->damaged(p.begin, p.begin + p.bytes) >= 0) {
        int64_t seen = bad.load();
        while (i < seen && !bad.compare_exchange_weak(seen, i)) {
        }
        return;
      }
      std::memcpy(out + p.to, p.from->data() + p.begin, p.bytes);
    }
  };
  const int parts =
      static_cast<int>(std::clamp<int64_t>(total / BYTES_PER_THREAD, 1, std::min<int64_t>(here.pool.size(), std::max<int64_t>(count, 1))));
  if (parts == 1) work(0, count);
  else here.pool.run(parts, [&](int part) { work(count * part / parts, count * (part + 1) / parts); });
  if (bad == count) return std::nullopt;
  const Piece& p = pieces[bad];
  const int64_t block = p.from->damaged(p.begin, p.begin + p.bytes);
  return Damage{shard_rows_(p.id), block * block_bytes_, (block + 1) * block_bytes_};
}

}  // namespace ensdistill::shards
