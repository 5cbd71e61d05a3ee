// One call of the multi-label loss as plain pointers, free of torch and of the device.
#pragma once

#include "problem.h"

namespace ensdistill {

struct MultilabelCall : LossCall {
  Matrix marks;                    // [N, C] labels from 0 to 1, or `unknown`; data is null where labels have no share
  Matrix mask;                     // [N, C] u8, 0 leaves a class of a row out; data is null where there is none
  const double* positive_weights;  // [C] factors of the cross entropy's positive part, or null

  ENSDISTILL_HD bool marked() const { return marks.data && alpha < 1; }
  ENSDISTILL_HD bool taught() const { return alpha > 0; }
  // A byte of -1 is 255.
  ENSDISTILL_HD double unknown() const { return marks.type == Element::u8 ? 255 : -1; }
  ENSDISTILL_HD double factor() const { return row_factor() / (reduction == Reduction::mean ? divisor : 1.0); }
  // The factor of a row's cross entropy. A mean divides by all rows, but the cross entropy's is over those with a known label, `rows_marked`.
  ENSDISTILL_HD double hard_share_of(int64_t rows_marked) const {
    return hard_share() / (reduction == Reduction::mean && rows_marked > 0 ? double(rows_marked) : 1.0);
  }
  // Each class has a term of its own in the divergence, so its weight is one of the whole term.
  ENSDISTILL_HD double class_weight(int64_t c) const { return class_weights ? class_weights[c] : 1.0; }
  ENSDISTILL_HD double positive_weight(int64_t c) const { return positive_weights ? positive_weights[c] : 1.0; }
};

}  // namespace ensdistill
