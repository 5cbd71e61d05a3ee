// Single numbers of any element type, for the rows in double precision.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../problem.h"

namespace ensdistill {

inline double read(const void* data, Element type, int64_t i) {
  switch (type) {
    case Element::f64: return static_cast<const double*>(data)[i];
    case Element::f32: return static_cast<const float*>(data)[i];
    case Element::bf16: return float(static_cast<const torch::headeronly::BFloat16*>(data)[i]);
    case Element::f16: return float(static_cast<const torch::headeronly::Half*>(data)[i]);
    default: return static_cast<const uint8_t*>(data)[i];
  }
}

inline void write(void* data, Element type, int64_t i, double x) {
  switch (type) {
    case Element::f64: static_cast<double*>(data)[i] = x; break;
    case Element::f32: static_cast<float*>(data)[i] = float(x); break;
    case Element::bf16: static_cast<torch::headeronly::BFloat16*>(data)[i] = float(x); break;
    default: static_cast<torch::headeronly::Half*>(data)[i] = float(x);
  }
}

}  // namespace ensdistill
