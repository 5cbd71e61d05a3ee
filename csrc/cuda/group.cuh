// The threads that own a row together, and how they meet: a lane alone, lanes of a warp, a block, a cluster of blocks. Some
// kernels learn which at run time only: one for each would be three times as many. Reductions run in a fixed order, so the
// same input gives the same bits, and all threads end with the same ones as long as op(a, b) and op(b, a) are bitwise equal.
#pragma once
#include "hardware.cuh"
#include "plan.h"

namespace ensdistill::cuda {

template <class T, class Op>
ENSDISTILL_DEVICE T reduce_lanes(T x, int lanes, const Op& op) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x = op(x, from_lane_across(x, distance));
  return x;
}

enum class Meeting { alone, block, any };

template <Meeting kMeeting>
struct Group {
  int lanes;   // up to 32, a power of two; else the whole block
  int blocks;  // of a cluster, which only groups of any kind can be
  int size, rank;
  int index;              // of the block's groups
  unsigned char* memory;  // from two blocks' worth of threads on: slots for partial results, see kReductionBytes
  int turn = 0;

  // `memory` may be null for groups of up to 32 lanes.
  ENSDISTILL_DEVICE Group(int lanes, unsigned char* memory, bool cluster = false)
      : lanes(lanes),
        blocks(kMeeting == Meeting::any && cluster ? cluster_size() : 1),
        size(lanes * blocks),
        rank(int(threadIdx.x) % lanes + (blocks > 1 ? cluster_rank() * lanes : 0)),
        index(int(threadIdx.x) / lanes),
        memory(memory) {}

  template <class T, class Op>
  ENSDISTILL_DEVICE T reduce(T x, T neutral, const Op& op) {
    return meet(x, neutral, [&](T mine, int count) { return reduce_lanes(mine, count, op); });
  }
  // The same for numbers that are reduced in steps: across(x, lanes) does so for some lanes.
  template <class T, class Across>
  ENSDISTILL_DEVICE T meet(T x, T neutral, const Across& across) {
    if constexpr (kMeeting == Meeting::alone) return x;
    if (kMeeting == Meeting::any && lanes <= 32) return across(x, lanes);
    x = meet_in_block(x, neutral, across);
    return kMeeting == Meeting::any && blocks > 1 ? meet_in_cluster(x, neutral, across) : x;
  }
  // For shared memory, which is each block's own.
  ENSDISTILL_DEVICE void sync() const {
    if constexpr (kMeeting == Meeting::alone) return;
    if (kMeeting == Meeting::any && lanes <= 32) __syncwarp();
    else __syncthreads();
  }
  // In its block.
  ENSDISTILL_DEVICE bool first_here() const { return int(threadIdx.x) % lanes == 0; }

 private:
  // One barrier: the next reduction writes the other set of slots, and nobody can write this one again before all threads
  // have passed that next one's barrier, that is, have read this one.
  template <class T, class Across>
  ENSDISTILL_DEVICE T meet_in_block(T x, T neutral, const Across& across) {
    static_assert(sizeof(T) <= kSlotBytes, "a slot's size");
    T* slot = reinterpret_cast<T*>(memory + 32 * kSlotBytes * turn);
    turn ^= 1;
    const int thread = int(threadIdx.x), warps = int(blockDim.x) / 32;
    x = across(x, 32);
    if (thread % 32 == 0) slot[thread / 32] = x;
    __syncthreads();
    return across(thread % 32 < warps ? slot[thread % 32] : neutral, 32);
  }
  template <class T, class Across>
  ENSDISTILL_DEVICE T meet_in_cluster(T x, T neutral, const Across& across) {
    auto* mine = reinterpret_cast<uint32_t*>(memory + kSlotBytes * (64 + turn));
    if (threadIdx.x < 32) {  // whole warps, which the barrier needs
      if (threadIdx.x == 0) memcpy(mine, &x, sizeof(T));
      cluster_fence();
    }
    cluster_barrier();
    x = neutral;
    const int lane = int(threadIdx.x) % 32;
    if (lane < blocks) {
      uint32_t word[sizeof(T) / 4];
#pragma unroll
      for (int i = 0; i < int(sizeof(T) / 4); ++i) word[i] = word_of_block(mine + i, lane);
      memcpy(&x, word, sizeof(T));
    }
    return across(x, 32);
  }
};

}  // namespace ensdistill::cuda
