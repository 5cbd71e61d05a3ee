// The engine under the stand-in headers: the thread that runs now, and everything for which threads wait for each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

struct uint3 {
  unsigned x, y, z;
};

// The place of a call in a kernel: for reports, and to distinguish barriers.
struct Place {
  const char* file;
  int line;
};
#define ENSDISTILL_SHIM_PLACE ::shim::Place place = {__builtin_FILE(), __builtin_LINE()}

// Ends the launch: the op throws, with this message, the kernel, the block and the thread. To be called from kernels.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool in_kernel();

void check_aligned(const void* address, size_t alignment, const char* what, Place place);

// --- copies into shared memory, that arrive at the wait, not before
void copy_async(void* to, const void* from, size_t bytes, Place place);
void commit_copies();
void wait_for_copies(size_t but);

// --- warps
enum class Shuffle { by_xor, from, up, down };
using Combine = uint64_t (*)(uint64_t a, uint64_t b);

int lane();
// Waits for all lanes of the mask, and gives each the value of its source lane.
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int bytes, int operand, int width, Place place);
// Waits for all lanes of the mask, and gives all of them their values, combined in the order of the lanes.
uint64_t reduce(const char* name, unsigned mask, uint64_t value, Combine combine, Place place);

// --- blocks and clusters
// How many threads came with a true predicate.
int barrier(bool predicate, const char* name, Place place);
void cluster_arrive(Place place);
void cluster_wait(Place place);
unsigned cluster_rank();
unsigned cluster_size();
// Copies from the same place of another block's shared memory.
void read_shared(void* to, const void* address, size_t bytes, unsigned rank, Place place);

// --- launches, from the host
struct Shape {
  uint3 grid, block, cluster;
  size_t shared_bytes;
};
// Runs all blocks, in an order that depends on the seed. Throws std::runtime_error for a kernel's fault.
void run(const char* kernel, const Shape& shape, void (*body)(const void*), const void* argument);
void set_seed(uint64_t seed);

}  // namespace shim
