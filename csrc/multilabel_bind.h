// The multi-label op's arguments and their checks, for every device. Python has checked them already, with messages for users.
#pragma once
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bind.h"
#include "multilabel.h"

namespace ensdistill {

// As schema.cpp describes them. `shared` has those that the loss over one softmax has, too.
struct MultilabelArguments {
  LossArguments shared;
  std::optional<Tensor> marks, mask, positive_weights;
};

inline void check_like_student(const char* name, const std::optional<Tensor>& t, const LossArguments& a) {
  if (!t) return;
  bool fits = t->dim() == a.student.dim();
  for (int64_t i = 0; fits && i < t->dim(); ++i) fits = t->size(i) == a.student.size(i);
  STD_TORCH_CHECK(fits, name, ": expected the student's shape");
  check_layout(name, *t);
}

inline void check_multilabel(const MultilabelArguments& m) {
  const LossArguments& a = m.shared;
  check_inputs(a);
  check_like_student("labels", m.marks, a);
  check_like_student("mask", m.mask, a);
  if (m.marks) {
    const ScalarType type = m.marks->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Byte || (is_logits_type(type) && (type != ScalarType::Double || a.in_double())),
                    "labels: expected uint8 or floating-point numbers, float64 only beside float64 logits");
  }
  STD_TORCH_CHECK(!m.mask || m.mask->scalar_type() == ScalarType::Byte, "mask: expected uint8");
  check_vector("pos_weight", m.positive_weights, ScalarType::Double, a.classes());
  STD_TORCH_CHECK(a.alpha == 1 || m.marks, "alpha: below 1 it mixes in hard labels, and labels is None");
  STD_TORCH_CHECK(a.tail_mode != TailMode::renormalize, "tail_mode: expected 'tail' or 'zero'");
}

inline MultilabelCall multilabel_call_of(const MultilabelArguments& m, Tensor& gradient) {
  MultilabelCall call{};
  static_cast<LossCall&>(call) = call_of(m.shared, gradient);
  const int64_t dims = m.shared.student.dim();
  if (m.marks) call.marks = matrix_of(*m.marks, dims);
  if (m.mask) call.mask = matrix_of(*m.mask, dims);
  call.positive_weights = m.positive_weights ? m.positive_weights->const_data_ptr<double>() : nullptr;
  return call;
}

using MultilabelResult = std::tuple<Tensor, Tensor>;  // loss, gradient

// The op's signature for every device; `Run` is the device's implementation.
template <MultilabelResult (*Run)(const MultilabelArguments&)>
MultilabelResult multilabel_loss(Tensor student, Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset, std::optional<Tensor> ids,
                                 std::optional<Tensor> tail, std::optional<Tensor> weights, std::optional<Tensor> labels, std::optional<Tensor> mask,
                                 std::optional<Tensor> class_weights, std::optional<Tensor> pos_weight, std::optional<Tensor> sample_weights,
                                 std::string kind, double temperature, double alpha, std::string combiner, std::string tail_mode,
                                 double label_smoothing, std::string reduction, double divisor, bool with_gradient) {
  MultilabelArguments m;
  LossArguments& a = m.shared;
  a.student = std::move(student), a.targets = std::move(targets), a.scale = std::move(scale), a.offset = std::move(offset);
  a.ids = std::move(ids), a.tail = std::move(tail), a.weights = std::move(weights);
  a.class_weights = std::move(class_weights), a.sample_weights = std::move(sample_weights);
  m.marks = std::move(labels), m.mask = std::move(mask), m.positive_weights = std::move(pos_weight);
  a.kind = value_of<Kind>(kind), a.combiner = value_of<Combiner>(combiner), a.tail_mode = value_of<TailMode>(tail_mode);
  a.reduction = value_of<Reduction>(reduction), a.divergence = Divergence::forward_kl;
  a.temperature = temperature, a.alpha = alpha, a.label_smoothing = label_smoothing, a.divisor = divisor, a.beta = 0.5, a.z_loss = 0;
  a.ignore_index = 0, a.with_gradient = with_gradient, a.with_statistics = false;
  check_multilabel(m);
  return Run(m);
}

}  // namespace ensdistill
