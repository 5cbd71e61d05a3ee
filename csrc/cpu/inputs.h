// The gradient's memory and the members that count, for the CPU's losses.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../bind.h"
#include "memory.h"
#include "run_loss.h"

namespace ensdistill {

// Large ones are kept when they are let go: fresh pages cost as much as the arithmetic.
inline Tensor pooled_gradient(const LossArguments& a) {
  const size_t bytes = size_t(a.with_gradient ? a.rows() : 0) * a.classes() * bytes_of(element_of(a.student.scalar_type()));
  if (bytes < size_t(1) << 20) return new_gradient(a);
  const auto [size, stride] = gradient_shape(a);
  return torch::stable::from_blob(take_gradient(bytes), size, stride, a.student.device(), a.student.scalar_type(), &give_gradient_back);
}

// Members without weight are never read: a NaN of theirs can't matter, and they cost nothing.
inline Members choose_members(const LossArguments& a) {
  Members chosen;
  double total = 0;
  for (int64_t k = 0; k < a.members(); ++k) {
    const double w = a.weights ? a.weights->const_data_ptr<double>()[k] : 1.0;
    STD_TORCH_CHECK(w >= 0 && w <= 1e300, "weights: expected finite values of at least 0, got ", w, " for member ", k);
    total += w;
    if (w > 0) chosen.used.push_back(k), chosen.weights.push_back(w);
  }
  STD_TORCH_CHECK(total > 0, "weights: expected a sum above 0");
  for (double& w : chosen.weights) w /= total;
  return chosen;
}

}  // namespace ensdistill
