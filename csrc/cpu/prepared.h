// Calls of the loss that have the settings, shapes, types and strides of an earlier one: only pointers are new. Small calls cost less this
// way than the dispatcher takes for as many arguments.
#pragma once
#include <cstdint>

#include "run_loss.h"

namespace ensdistill {

// The arguments that are memory, null where there is none.
struct LossPointers {
  const void *student, *targets;
  const float *scale, *offset;
  const int64_t* ids;
  const void* tail;
  const double* weights;
  const int64_t* labels;
  const double *class_weights, *sample_weights;
  void *gradient, *loss;
};

class PreparedLoss {
 public:
  // `shape`: a call without its pointers.
  PreparedLoss(const LossCall& shape, int64_t members) : shape_(shape), members_(members) {}

  // Returns false where a value is to be refused, or where a NaN is to be explained: the caller then takes the way that does so.
  bool run(const LossPointers& pointers) const;

 private:
  LossCall shape_;
  int64_t members_;

  bool in_double() const { return shape_.student.type == Element::f64 || shape_.targets.type == Element::f64; }
  bool choose(const double* weights, Members& chosen) const;
  bool accepts(const LossCall& call) const;
};

}  // namespace ensdistill
