// Division by a number that stays the same, as a multiplication: a gather divides twice for each record, and the processor's own
// division takes as long as copying a small record.
#pragma once
#include <cstdint>

namespace ensdistill::shards {

class Divisor {
 public:
  explicit Divisor(int64_t by) : by_(by > 0 ? by : 1), reciprocal_(UINT64_MAX / by_) {}  // the caller refuses others

  // value / by, for value >= 0: the reciprocal was rounded down, which leaves the product at most one short.
  int64_t operator()(int64_t value) const {
    const uint64_t x = value, q = static_cast<uint64_t>(static_cast<unsigned __int128>(x) * reciprocal_ >> 64);
    return static_cast<int64_t>(q + (x - q * by_ >= by_));
  }
  int64_t by() const { return static_cast<int64_t>(by_); }

 private:
  uint64_t by_, reciprocal_;
};

}  // namespace ensdistill::shards
