// The functions of csrc/cuda/hardware.cuh, there written in the hardware's own language.
#pragma once
#include <cstdint>

#include "engine.h"

namespace ensdistill::cuda {

template <int kBytes>
void async_copy(void* shared, const void* global, ENSDISTILL_SHIM_PLACE) {
  shim::copy_async(shared, global, kBytes, place);
}
inline void async_commit() { shim::commit_copies(); }
template <int kLeft>
void async_wait() {
  shim::wait_for_copies(kLeft);
}

inline int cluster_rank() { return int(shim::cluster_rank()); }
inline int cluster_size() { return int(shim::cluster_size()); }
inline void cluster_barrier(ENSDISTILL_SHIM_PLACE) {
  shim::cluster_arrive(place);
  shim::cluster_wait(place);
}
inline void cluster_fence() {}  // stores are visible at once here
inline uint32_t word_of_block(const uint32_t* mine, int block, ENSDISTILL_SHIM_PLACE) {
  uint32_t word = 0;
  shim::check_aligned(mine, sizeof word, "a load from another block", place);
  shim::read_shared(&word, mine, sizeof word, unsigned(block), place);
  return word;
}

}  // namespace ensdistill::cuda
