// The mixture of K members, a row at a time, in double: what the encoders read.
#pragma once
#include <cstdint>
#include <vector>

#include "doubles.h"

namespace ensdistill {

enum class Stored : int { f64, f32, bf16, f16, codes };

// Members' logits [K, N, C] in memory, classes side by side. Strides in elements.
struct StoredLogits {
  const void* data;
  Stored type;
  int64_t classes, member_stride, row_stride;
  const float *scale = nullptr, *offset = nullptr;  // [K, N], of codes
  int64_t scale_strides[2] = {}, offset_strides[2] = {};

  // Classes first .. first + count of a row as doubles, and -inf up to a multiple of the lanes.
  void load(int64_t member, int64_t row, int64_t first, int64_t count, double* out) const;
};

struct Ensemble {
  StoredLogits logits;
  std::vector<int64_t> members;  // those with weight
  std::vector<double> weights;   // theirs, summing to one
  double temperature;
  bool geometric;
};

// One thread's mixture of one row: p and, where asked for, log p, which is exact also where p underflows. Both are padded
// by classes without mass.
class MixtureRow {
 public:
  MixtureRow(const Ensemble& ensemble, bool with_logs);

  // False where the row has no distribution: NaN, +inf, or no class that is left.
  bool make(int64_t row);

  std::vector<double> p, log_p;

 private:
  const Ensemble& ensemble_;
  const int64_t padded_;
  std::vector<double> x_;
  std::vector<double> largest_, log_sum_;  // of each member's softmax

  double softmax_terms(int64_t member, double* shifted, double* terms);
  void mean_logits(int64_t row);
  double log_of_little(int64_t row, int64_t c) const;
};

}  // namespace ensdistill
