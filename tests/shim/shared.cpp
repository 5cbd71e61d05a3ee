#include "shared.h"

#include <link.h>

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// No better aligned than kernels require: 16 bytes.
asm(R"(
.section .tbss,"awT",@nobits
.balign 32
.zero 4096 + 16
.globl _ZN10ensdistill4cuda6memoryE
.hidden _ZN10ensdistill4cuda6memoryE
.type _ZN10ensdistill4cuda6memoryE, @object
_ZN10ensdistill4cuda6memoryE:
.zero 256 * 1024 + 4096
.size _ZN10ensdistill4cuda6memoryE, 256 * 1024
.text
)");

namespace ensdistill::cuda {
extern __thread unsigned char memory[];  // as kernels see it
}

namespace shim {
namespace {

constexpr size_t kStrip = 4096;
constexpr unsigned char kStripByte = 0xa5;

struct Storage {
  unsigned char* begin;
  size_t bytes;
};

// This library's thread-local storage on this host thread: that which holds the dynamic part.
int look(dl_phdr_info* info, size_t, void* found) {
  const auto* memory = reinterpret_cast<unsigned char*>(ensdistill::cuda::memory);
  auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
  for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_TLS || memory < begin || memory >= begin + segment.p_memsz) continue;
    *static_cast<Storage*>(found) = {begin, segment.p_memsz};
    return 1;
  }
  return 0;
}

}  // namespace

void SharedMemory::open(size_t dynamic_bytes) {
  Storage all{};
  unsigned char* memory = ensdistill::cuda::memory;
  asm("" : "+r"(memory));  // there is more around it than the compiler knows
  dl_iterate_phdr(look, &all);
  unsigned char* const strips = memory - kStrip;
  unsigned char* const rest = memory + kLargest + kStrip;
  parts_ = {{memory, dynamic_bytes}, {all.begin, size_t(strips - all.begin)}, {rest, size_t(all.begin + all.bytes - rest)}};
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(strips, kStrip);
  __asan_poison_memory_region(memory + dynamic_bytes, kLargest + kStrip - dynamic_bytes);
#else
  std::memset(strips, kStripByte, kStrip);
  std::memset(memory + dynamic_bytes, kStripByte, kStrip);
#endif
}

void SharedMemory::close() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(parts_.front().begin - kStrip, kLargest + 2 * kStrip);
#endif
}

void SharedMemory::poison() {
  for (const Part& part : parts_) std::memset(part.begin, kPoison, part.bytes);
}

SharedMemory::Image SharedMemory::save() const {
  Image image;
  for (const Part& part : parts_) image.insert(image.end(), part.begin, part.begin + part.bytes);
  return image;
}

void SharedMemory::load(const Image& image) {
  size_t at = 0;
  for (const Part& part : parts_) std::memcpy(part.begin, image.data() + at, part.bytes), at += part.bytes;
}

bool SharedMemory::holds(const void* address, size_t bytes) const {
  const auto* a = static_cast<const unsigned char*>(address);
  for (const Part& part : parts_)
    if (a >= part.begin && a + bytes <= part.begin + part.bytes) return true;
  return false;
}

size_t SharedMemory::offset(const void* address) const {
  const auto* a = static_cast<const unsigned char*>(address);
  size_t at = 0;
  for (const Part& part : parts_) {
    if (a >= part.begin && a < part.begin + part.bytes) return at + size_t(a - part.begin);
    at += part.bytes;
  }
  return SIZE_MAX;
}

bool SharedMemory::damaged() const {
#if !defined(__SANITIZE_ADDRESS__)
  const auto touched = [](const unsigned char* strip) {
    for (size_t i = 0; i < kStrip; ++i)
      if (strip[i] != kStripByte) return true;
    return false;
  };
  const Part& dynamic = parts_.front();
  return touched(dynamic.begin - kStrip) || touched(dynamic.begin + dynamic.bytes);
#else
  return false;
#endif
}

}  // namespace shim
