// Argument checks of the native ops. Python has checked already and speaks to the user (functional.py); these are the
// backstop for whoever calls torch.ops.ensdistill directly, or through torch.compile, where Python can't see the values.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace ensdistill {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_logits_type(ScalarType t) {
  return t == ScalarType::Double || t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

struct Arguments {
  const Tensor& student;
  const Tensor& targets;
  const std::optional<Tensor>&scale, &offset, &weights, &labels;
  double temperature, alpha;
  const std::string& combiner;
  double label_smoothing;
  const std::string& reduction;
};

// Returns the number of members, K.
inline int64_t check_arguments(const Arguments& a) {
  STD_TORCH_CHECK(a.student.dim() == 2 && is_logits_type(a.student.scalar_type()), "student: expected floating-point [N, C]");
  const int64_t rows = a.student.size(0), classes = a.student.size(1);
  STD_TORCH_CHECK(a.targets.dim() == 3 && a.targets.size(1) == rows && a.targets.size(2) == classes, "targets: expected [K, ", rows, ", ", classes,
                  "]");
  STD_TORCH_CHECK(classes >= 1 && a.targets.size(0) >= 1, "student and targets: expected at least one class and one member");
  const int64_t members = a.targets.size(0);
  STD_TORCH_CHECK(a.student.stride(1) == 1 || classes == 1, "student: expected unit stride over classes");
  STD_TORCH_CHECK(a.targets.stride(2) == 1 || classes == 1, "targets: expected unit stride over classes");
  const bool codes = a.targets.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(codes || is_logits_type(a.targets.scalar_type()), "targets: expected floating-point logits or uint8 codes");
  STD_TORCH_CHECK(codes == a.scale.has_value() && codes == a.offset.has_value(), "scale and offset: expected with uint8 codes, and only then");
  for (const auto* part : {&a.scale, &a.offset})
    if (part->has_value()) {
      const Tensor& t = part->value();
      STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.dim() == 2 && t.size(0) == members && t.size(1) == rows,
                      "scale and offset: expected float32 [", members, ", ", rows, "]");
    }
  if (a.weights) {
    STD_TORCH_CHECK(
        a.weights->scalar_type() == ScalarType::Double && a.weights->dim() == 1 && a.weights->size(0) == members && a.weights->is_contiguous(),
        "weights: expected contiguous float64 [", members, "]");
  }
  if (a.labels) {
    STD_TORCH_CHECK(a.labels->scalar_type() == ScalarType::Long && a.labels->dim() == 1 && a.labels->size(0) == rows && a.labels->is_contiguous(),
                    "labels: expected contiguous int64 [", rows, "]");
  }
  STD_TORCH_CHECK(a.temperature > 0, "temperature: expected > 0, got ", a.temperature);
  STD_TORCH_CHECK(a.alpha >= 0 && a.alpha <= 1, "alpha: expected 0..1, got ", a.alpha);
  STD_TORCH_CHECK(a.alpha == 1 || a.labels, "alpha: below 1 it mixes in hard labels, and labels is None");
  STD_TORCH_CHECK(a.label_smoothing >= 0 && a.label_smoothing <= 1, "label_smoothing: expected 0..1, got ", a.label_smoothing);
  STD_TORCH_CHECK(a.combiner == "prob" || a.combiner == "logit" || a.combiner == "log_prob", "combiner: expected prob, logit or log_prob, got ",
                  a.combiner);
  STD_TORCH_CHECK(a.reduction == "mean" || a.reduction == "sum" || a.reduction == "none", "reduction: expected mean, sum or none, got ", a.reduction);
  return members;
}

}  // namespace ensdistill
