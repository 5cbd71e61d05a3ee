// The shared memory of the block that runs. Kernels declare it as ever: __shared__ is thread_local, which may stand behind
// extern as well, so all of it is the thread-local storage of this library on the one host thread that runs the kernel. The
// dynamic part, ensdistill::cuda::memory, lies between two strips that no kernel may touch. Blocks of a cluster take turns there.
#pragma once
#include <cstddef>
#include <vector>

namespace shim {

class SharedMemory {
 public:
  static constexpr int kPoison = 0xff;            // all bits set is a NaN in every format, and no likely number or index
  static constexpr size_t kLargest = 256 * 1024;  // of the dynamic part
  using Image = std::vector<unsigned char>;

  // For the launches of this host thread, until close().
  void open(size_t dynamic_bytes);
  void close();
  void poison();
  Image save() const;
  void load(const Image& image);
  // Whether `bytes` bytes at this address are shared memory.
  bool holds(const void* address, size_t bytes) const;
  // Where in an image this address is.
  size_t offset(const void* address) const;
  // Whether a kernel wrote into the strips. (The address sanitizer doesn't let them.)
  bool damaged() const;

 private:
  struct Part {
    unsigned char* begin;
    size_t bytes;
  };
  std::vector<Part> parts_;  // the dynamic part, and the variables before and behind it
};

}  // namespace shim
