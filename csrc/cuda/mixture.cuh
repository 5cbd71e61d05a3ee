// A row's mixture of K members in double precision, for the encoders: a block walks the row as often as it takes, keeps a few
// numbers of each member, and has scratch memory of its own.
#pragma once
#include "../encode.h"
#include "members.cuh"
#include "memory.cuh"
#include "problem.cuh"

namespace ensdistill::cuda {

constexpr int kEncodeThreads = 256;  // of a block at most, of which a multiprocessor has registers for two or three

using Block = Group<Meeting::block>;

template <class R>
struct Larger {
  ENSDISTILL_DEVICE R operator()(R a, R b) const { return larger(a, b); }
};

// As on the CPU: 0 where the result would be subnormal. A NaN stays.
ENSDISTILL_DEVICE double exponential_or_zero(double x) { return x < -708.0 ? 0.0 : exponential(x); }

// Both rounded: the same bits in whichever sweep it is worked out.
ENSDISTILL_DEVICE double plus_product(double sum, double a, double b) { return __dadd_rn(sum, __dmul_rn(a, b)); }

// Below this, log p is worked out from logarithms: p itself has lost digits, or is zero.
constexpr double kLittle = 1e-290;

// Sums over the threads before this one: places in an order, and running totals. One barrier each; see Group::meet_in_block.
struct Scan {
  int64_t* memory;  // [2 * 32]
  int turn = 0;

  // Sets *all to the sum over the block.
  template <class T>
  ENSDISTILL_DEVICE T before(T x, T* all) {
    static_assert(sizeof(T) <= sizeof(int64_t), "a slot's size");
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
    T* const slot = reinterpret_cast<T*>(memory + 32 * turn);
    turn ^= 1;
    T through = x;
    for (int distance = 1; distance < 32; distance *= 2) {
      const T below = from_lane_below(through, distance);
      if (lane >= distance) through += below;
    }
    if (lane == 31) slot[warp] = through;
    const T in_warp = from_lane_below(through, 1);
    __syncthreads();
    T sum = 0, mine = 0;
    for (int w = 0; w < warps; ++w) {
      if (w == warp) mine = sum;
      sum += slot[w];
    }
    *all = sum;
    return lane > 0 ? mine + in_warp : mine;
  }
};

// Memory of one block: shared where it fits, else a piece of a tensor.
struct Scratch {
  int64_t at;
  bool shared;
};

struct EnsembleCall {
  StoredLogits logits;
  const double* weights;  // [members], or null
  int members;
  int64_t rows;
  double temperature;
  bool geometric;

  unsigned char* device_memory;  // [blocks, device_bytes]
  int64_t device_bytes;
  Scratch member_table;  // MemberOfRow [members], then their weights and numbers

  template <class T>
  ENSDISTILL_DEVICE T* memory_of(const Scratch& scratch, unsigned char* shared) const {
    return reinterpret_cast<T*>((scratch.shared ? shared : device_memory + blockIdx.x * device_bytes) + scratch.at);
  }
};

struct MemberOfRow {
  double max, log_sum;  // of the softmax: log p = (x - max) / T - log_sum
  double factor;        // weight / sum of the exponentials
  int64_t start;
  float scale, offset;
};
constexpr int64_t kMemberBytes = sizeof(MemberOfRow) + sizeof(double) + sizeof(int);

class Mixture {
 public:
  ENSDISTILL_DEVICE Mixture(const EnsembleCall& call, Block& block, unsigned char* shared, int* used)
      : call_(call),
        block_(block),
        member_(call.memory_of<MemberOfRow>(call.member_table, shared)),
        weight_(reinterpret_cast<double*>(member_ + call.members)),
        index_(reinterpret_cast<int*>(weight_ + call.members)) {
    if (block.rank == 0) {
      bool valid;
      const int n = use_members(call.weights, call.members, index_, weight_, &valid);
      *used = valid ? n : -n;
    }
    __syncthreads();
    valid_ = *used > 0;
    used_ = valid_ ? *used : -*used;
    averaged_ = call.geometric || used_ == 1;
  }

  // The constants of the row's walks, by all threads. False where the row has no distribution: NaN, +inf, or no class that is left.
  // Between the last walk of one row and this there must be a barrier; there are some here before all else that a row writes.
  ENSDISTILL_DEVICE bool measure(int64_t row) {
    const StoredLogits& logits = call_.logits;
    for (int j = block_.rank; j < used_; j += block_.size) {
      const int64_t k = index_[j];
      member_[j].start = logits.start_of(k, row);
      if (logits.scale) member_[j].scale = logits.scale_of(k, row), member_[j].offset = logits.offset_of(k, row);
    }
    __syncthreads();
    bool fine = valid_;
    for (int j = 0; j < (averaged_ ? 1 : used_); ++j) {
      double max = minus_infinity<double>(), sum = 0;
      for (int c = block_.rank; c < classes(); c += block_.size) max = larger(max, value(j, c));
      max = block_.reduce(max, minus_infinity<double>(), Larger<double>{});
      for (int c = block_.rank; c < classes(); c += block_.size) sum += exponential_or_zero((value(j, c) - max) / call_.temperature);
      sum = block_.reduce(sum, 0.0, Add<double>{});
      fine = fine && sum > 0;
      if (block_.rank == 0) member_[j].max = max, member_[j].log_sum = logarithm(sum), member_[j].factor = (averaged_ ? 1.0 : weight_[j]) / sum;
    }
    __syncthreads();
    return fine;
  }

  ENSDISTILL_DEVICE int classes() const { return int(call_.logits.classes); }

  ENSDISTILL_DEVICE double prob(int c) const {
    double p = 0;
    for (int j = 0; j < (averaged_ ? 1 : used_); ++j) p = plus_product(p, member_[j].factor, exponential_or_zero(shifted(j, c)));
    return p;
  }
  // Exact also where p underflows.
  ENSDISTILL_DEVICE double log_prob(int c) const {
    if (averaged_) return shifted(0, c) - member_[0].log_sum;
    const double p = prob(c);
    return p < kLittle ? log_of_little(c) : logarithm(p);
  }

 private:
  const EnsembleCall& call_;
  Block& block_;
  MemberOfRow* const member_;  // [used]; of averaged logits, one softmax
  double* const weight_;
  int* const index_;
  int used_;
  bool valid_, averaged_;

  ENSDISTILL_DEVICE double logit(const MemberOfRow& m, int c) const {
    const StoredLogits& logits = call_.logits;
    if (logits.type == Element::u8) return decoded_logit(m.scale, m.offset, static_cast<const uint8_t*>(logits.data)[m.start + c]);
    return number_at(logits.data, logits.type, m.start + c);
  }
  ENSDISTILL_DEVICE double value(int j, int c) const {
    if (!averaged_) return logit(member_[j], c);
    double x = __dmul_rn(weight_[0], logit(member_[0], c));
    for (int k = 1; k < used_; ++k) x = plus_product(x, weight_[k], logit(member_[k], c));
    return x;
  }
  ENSDISTILL_DEVICE double shifted(int j, int c) const { return (value(j, c) - member_[j].max) / call_.temperature; }

  // Of a class to which no member gives a mass that a double holds well: logsumexp over the members.
  ENSDISTILL_DEVICE double log_of_little(int c) const {
    double max = minus_infinity<double>(), total = 0;
    for (int j = 0; j < used_; ++j) max = larger(max, log_share(j, c));
    if (!(max > minus_infinity<double>())) return max;
    for (int j = 0; j < used_; ++j) total += exponential(log_share(j, c) - max);
    return max + logarithm(total);
  }
  ENSDISTILL_DEVICE double log_share(int j, int c) const { return shifted(j, c) - member_[j].log_sum + logarithm(weight_[j]); }
};

}  // namespace ensdistill::cuda
