// From the op's arguments to a LossCall, the same for every device.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "checks.h"
#include "problem.h"

namespace ensdistill {

inline Element element_of(ScalarType t) {
  switch (t) {
    case ScalarType::Double: return Element::f64;
    case ScalarType::Float: return Element::f32;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Half: return Element::f16;
    default: return Element::u8;
  }
}

// The last two or three dimensions of t as rows of classes.
inline Matrix matrix_of(const Tensor& t, int64_t dims) {
  const int64_t d = t.dim();
  const bool one_class = t.size(d - 1) == 1;
  return {t.numel() ? t.const_data_ptr() : nullptr, element_of(t.scalar_type()), dims == 3 ? t.stride(d - 3) : 0, t.stride(d - 2),
          one_class ? 1 : t.stride(d - 1)};
}

// Sizes and strides of the gradient, which has the student's layout: channels first where the student has it so. Without
// rows where the caller does not want it.
inline std::pair<std::vector<int64_t>, std::vector<int64_t>> gradient_shape(const LossArguments& a) {
  const Tensor& s = a.student;
  const int64_t C = a.classes();
  const bool channels_first = s.stride(s.dim() - 1) != 1 && C > 1;
  if (s.dim() == 3) {
    const int64_t O = a.with_gradient ? s.size(0) : 0, I = s.size(1);
    return {{O, I, C}, channels_first ? std::vector<int64_t>{C * I, 1, I} : std::vector<int64_t>{I * C, C, 1}};
  }
  const int64_t rows = a.with_gradient ? a.rows() : 0;
  return {{rows, C}, channels_first ? std::vector<int64_t>{1, std::max<int64_t>(rows, 1)} : std::vector<int64_t>{C, 1}};
}

inline Tensor new_gradient(const LossArguments& a) {
  auto [size, stride] = gradient_shape(a);
  const int64_t d = a.student.dim();
  if (stride[d - 1] == 1) return torch::stable::new_empty(a.student, size);
  std::swap(size[d - 2], size[d - 1]);
  return torch::stable::transpose(torch::stable::new_empty(a.student, size), d - 2, d - 1);
}

inline LossCall call_of(const LossArguments& a, Tensor& gradient) {
  const int64_t dims = a.student.dim();
  LossCall call{};
  static_cast<LossSettings&>(call) = a;
  call.rows = a.rows(), call.inner = std::max<int64_t>(1, a.inner()), call.classes = a.classes();
  call.student = matrix_of(a.student, dims);
  const bool any = call.rows > 0;
  if (a.sparse()) {
    call.targets = {a.targets.numel() ? a.targets.const_data_ptr() : nullptr, element_of(a.targets.scalar_type()), 0, a.targets.size(1), 1};
    call.ids = a.ids->numel() ? a.ids->const_data_ptr<int64_t>() : nullptr;
    call.entries = a.targets.size(1);
    if (a.tail && any) call.tail = a.tail->const_data_ptr(), call.tail_is_double = a.tail->scalar_type() == ScalarType::Double;
  } else {
    call.targets = matrix_of(a.targets, dims);
    call.target_member_stride = a.targets.stride(0);
  }
  if (a.scale && any) {
    call.scale = a.scale->const_data_ptr<float>(), call.offset = a.offset->const_data_ptr<float>();
    call.scale_member_stride = a.scale->stride(0), call.scale_row_stride = a.scale->stride(1);
    call.offset_member_stride = a.offset->stride(0), call.offset_row_stride = a.offset->stride(1);
  }
  call.labels = a.labels && any ? a.labels->const_data_ptr<int64_t>() : nullptr;
  call.sample_weights = a.sample_weights && any ? a.sample_weights->const_data_ptr<double>() : nullptr;
  call.class_weights = a.class_weights ? a.class_weights->const_data_ptr<double>() : nullptr;
  if (a.with_gradient && any) call.gradient = gradient.mutable_data_ptr(), call.gradient_layout = matrix_of(gradient, dims);
  return call;
}

}  // namespace ensdistill
