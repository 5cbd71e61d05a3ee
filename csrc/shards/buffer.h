// Memory for gathered records that comes back when its last view is gone: fresh pages for every batch would cost more than the
// copying. A few blocks are kept.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace ensdistill::shards {

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    std::lock_guard lock(mutex());
    auto& blocks = kept();
    for (auto block = blocks.begin(); block != blocks.end(); ++block) {
      if (block->capacity < bytes || block->capacity / 2 > bytes) continue;
      block_ = *block;
      blocks.erase(block);
      return;
    }
    const size_t capacity = (bytes + 4095) / 4096 * 4096 + 4096;
    void* memory = std::aligned_alloc(4096, capacity);
    if (memory == nullptr) throw std::bad_alloc();
    block_ = {static_cast<uint8_t*>(memory), capacity};
  }
  ~Buffer() {
    std::lock_guard lock(mutex());
    auto& blocks = kept();
    blocks.push_back(block_);
    if (blocks.size() > KEPT) {
      std::free(blocks.front().memory);  // the oldest
      blocks.erase(blocks.begin());
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() { return block_.memory; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t KEPT = 4;
  struct Block {
    uint8_t* memory;
    size_t capacity;
  };
  // Never destroyed: views may outlive the module.
  static std::vector<Block>& kept() {
    static auto* blocks = new std::vector<Block>();
    return *blocks;
  }
  static std::mutex& mutex() {
    static auto* m = new std::mutex();
    return *m;
  }
  Block block_{};
  size_t bytes_;
};

}  // namespace ensdistill::shards
