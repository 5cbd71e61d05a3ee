// The mixture of K members, a row at a time, in double, for the encoders.
#pragma once
#include <cstdint>
#include <vector>

#include "../encode.h"
#include "doubles.h"

namespace ensdistill {

// Classes first .. first + count of a row as doubles, and -inf up to a multiple of the lanes.
void load_logits(const StoredLogits& logits, int64_t member, int64_t row, int64_t first, int64_t count, double* out);

struct Ensemble {
  StoredLogits logits;
  std::vector<int64_t> members;  // those with weight
  std::vector<double> weights;   // theirs, summing to one
  double temperature;
  bool geometric;
};

// One thread's mixture of one row: p and, where the caller wants it, log p, which is exact also where p underflows. Both are padded
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
