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
  // --- numbers of several kinds that meet once

  // Puts one that a warp's lanes have reduced to its place of `count`; groups of up to 32 lanes are done with that.
  template <class T>
  ENSDISTILL_DEVICE void post(T* slots, int i, const T& x) const {
    if (threadIdx.x % 32 == 0) slots[i * (int(blockDim.x) / 32) + int(threadIdx.x) / 32] = x;
  }
  // The first warp's lane i merges number i < count of all warps, then of all blocks: at(j) is the j-th of n. finish(i, x) gets it there.
  // `slots` has room for count * (warps + 1). Ends with a barrier.
  template <class T, class Merged, class Finish>
  ENSDISTILL_DEVICE void meet_at_once(T* slots, int count, const Merged& merged, const Finish& finish) const {
    const int warps = int(blockDim.x) / 32, lane = int(threadIdx.x);
    T* const ours = slots + count * warps;
    __syncthreads();
    if (lane < 32) {
      T x{};
      if (lane < count) x = merged(lane, warps, [&](int w) { return slots[lane * warps + w]; });
      if (blocks > 1) {
        if (lane < count) ours[lane] = x;
        cluster_fence();
      } else if (lane < count) {
        finish(lane, x);
      }
    }
    if (blocks > 1) {
      cluster_barrier();
      if (lane < count) finish(lane, merged(lane, blocks, [&](int block) { return of_block(ours + lane, block); }));
    }
    __syncthreads();
  }

  // For shared memory, which is each block's own.
  ENSDISTILL_DEVICE void sync() const {
    if constexpr (kMeeting == Meeting::alone) return;
    if (kMeeting == Meeting::any && lanes <= 32) __syncwarp();
    else __syncthreads();
  }
  // In its block.
  ENSDISTILL_DEVICE int rank_here() const { return int(threadIdx.x) % lanes; }
  ENSDISTILL_DEVICE bool first_here() const { return rank_here() == 0; }

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
    const int lane = int(threadIdx.x) % 32;
    return across(lane < blocks ? of_block(reinterpret_cast<const T*>(mine), lane) : neutral, 32);
  }
  // The value at the same place of another block's memory.
  template <class T>
  static ENSDISTILL_DEVICE T of_block(const T* mine, int block) {
    uint32_t word[sizeof(T) / 4];
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 4); ++i) word[i] = word_of_block(reinterpret_cast<const uint32_t*>(mine) + i, block);
    T x;
    memcpy(&x, word, sizeof(T));
    return x;
  }
};

}  // namespace ensdistill::cuda
