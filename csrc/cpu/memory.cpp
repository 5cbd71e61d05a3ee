#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace ensdistill {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kHeader = 64;  // before the data: its capacity; keeps the data aligned

void* allocate(size_t alignment, size_t bytes) {
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p) throw std::bad_alloc();
  return p;
}

struct Kept {
  std::mutex mutex;
  void* block = nullptr;  // its header
};
Kept& kept() {
  static auto* k = new Kept;  // never destroyed: a tensor may outlive the library's statics
  return *k;
}
size_t capacity_of(void* block) { return *static_cast<size_t*>(block); }

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    buffer.reset();
    buffer.reset(allocate(64, bytes));
    capacity = bytes;
  }
  return buffer.get();
}

void* take_gradient(size_t bytes) {
  void* block = nullptr;
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    std::swap(block, kept().block);
  }
  // A much larger one would hold memory that the caller never needed.
  if (block && (capacity_of(block) < bytes || capacity_of(block) / 2 > bytes)) std::free(std::exchange(block, nullptr));
  if (!block) {
    const bool large = bytes >= 4 * kHugePage;
    block = allocate(large ? kHugePage : 64, bytes + kHeader);
    *static_cast<size_t*>(block) = bytes;
#if defined(MADV_HUGEPAGE)
    if (large) madvise(block, (bytes + kHeader) / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice only
#endif
  }
  return static_cast<char*>(block) + kHeader;
}

void give_gradient_back(void* data) {
  void* block = static_cast<char*>(data) - kHeader;
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    std::swap(block, kept().block);
  }
  std::free(block);
}

size_t release_memory() {
  void* block = nullptr;
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    std::swap(block, kept().block);
  }
  const size_t bytes = block ? capacity_of(block) : 0;
  std::free(block);
  return bytes;
}

}  // namespace ensdistill
