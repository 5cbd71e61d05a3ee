// The encoders' inputs, and their work on one number or one draw, free of torch, for host and device: the affine map of a
// row of codes, and the random numbers of sampled counts. Nothing here adds to a product: whether a compiler fuses the two or
// not, the bits are the same.
#pragma once
#include <cmath>
#include <cstdint>

#include "problem.h"

namespace ensdistill {

// Members' logits or codes [K, N, C] in memory, classes side by side. Strides in elements.
struct StoredLogits {
  const void* data;
  Element type;
  int64_t classes, member_stride, row_stride;
  const float *scale = nullptr, *offset = nullptr;  // [K, N], of codes
  int64_t scale_strides[2] = {}, offset_strides[2] = {};

  ENSDISTILL_HD int64_t start_of(int64_t member, int64_t row) const { return member * member_stride + row * row_stride; }
  ENSDISTILL_HD float scale_of(int64_t member, int64_t row) const { return scale[member * scale_strides[0] + row * scale_strides[1]]; }
  ENSDISTILL_HD float offset_of(int64_t member, int64_t row) const { return offset[member * offset_strides[0] + row * offset_strides[1]]; }
};

// Product and sum in float32, as by all readers. Code 0 of a row with a negative scale is a masked class.
ENSDISTILL_HD double decoded_logit(float scale, float offset, int code) {
  if (scale < 0 && code == 0) return -__builtin_inf();
  return double(offset + float(double(scale < 0 ? -scale : scale) * code));
}

// Sums and differences of logits within it stay finite in float32; the target cache draws the same line.
constexpr double kLargestLogit = 1e38;

// logit = offset + |scale| * code, for a row whose finite logits lie in low..high. The rule of ensdistill/cache/codecs/uint8.py,
// operation for operation: the two must give the same bits.
struct RowCodes {
  float scale, offset;
  double divisor, lowest_code;

  ENSDISTILL_HD RowCodes(double low, double high, bool masked) {
    // 255 steps lie between 256 codes; a masked row gives code 0 away. A subnormal step could be flushed to zero by a
    // kernel, and a zero step has no sign to flag the mask with: such a row counts as constant.
    float step = float((high - low) / (masked ? 254 : 255));
    if (step < 1.17549435e-38f) step = masked ? 1.0f : 0.0f;
    scale = masked ? -step : step;
    offset = float(low - (masked ? double(step) : 0.0));
    divisor = step == 0 ? 1.0 : double(step);
    lowest_code = masked ? 1 : 0;
  }

  ENSDISTILL_HD uint8_t code(double logit) const {
    double x = (logit - double(offset)) / divisor;
    x = x > lowest_code ? x : lowest_code;
    x = x < 255 ? x : 255;
    // Adding 1.5 * 2^52 rounds half to even, as rint does, and leaves the integer in the sum's last bits.
    const double rounded = x + 0x1.8p52;
    int64_t bits;
    __builtin_memcpy(&bits, &rounded, 8);
    return logit == -__builtin_inf() ? 0 : uint8_t(bits);
  }

  ENSDISTILL_HD double decode(uint8_t code) const { return decoded_logit(scale, offset, code); }
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the draw is a function of seed, row
// and number, so it depends neither on threads nor on how the rows are cut into batches.
ENSDISTILL_HD void philox(uint64_t seed, uint64_t row, uint64_t block, uint64_t out[2]) {
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  uint32_t c[4] = {uint32_t(row), uint32_t(row >> 32), uint32_t(block), uint32_t(block >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ key[1], uint32_t(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  out[0] = uint64_t(c[1]) << 32 | c[0];
  out[1] = uint64_t(c[3]) << 32 | c[2];
}

// A uniform number from 52 of 64 random bits; never 0, never 1.
ENSDISTILL_HD double uniform_of(uint64_t bits) { return (double(bits >> 12) + 0.5) * 0x1p-52; }

// `draws` uniform numbers in (0, 1) in rising order, one after the other: of those that are left, n of them above x, the
// smallest lies where the part above it has shrunk by U^(1/n). No sort and no storage.
class SortedUniforms {
 public:
  ENSDISTILL_HD SortedUniforms(uint64_t seed, uint64_t row, int64_t draws) : seed_(seed), row_(row), draws_(draws) {}

  ENSDISTILL_HD double next() {
    if (used_ % 2 == 0) philox(seed_, row_, uint64_t(used_ / 2), bits_);
    log_above_ += log(uniform_of(bits_[used_ % 2])) / double(draws_ - used_);
    ++used_;
    return -expm1(log_above_);
  }

 private:
  uint64_t seed_, row_, bits_[2] = {};
  int64_t draws_, used_ = 0;
  double log_above_ = 0;
};

}  // namespace ensdistill
