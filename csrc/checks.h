// The op's arguments and their checks. Python has checked them already, with messages for users (arguments.py); these are the
// backstop for calls of torch.ops.ensdistill directly, or through torch.compile, where Python can't see the values.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "names.h"

namespace ensdistill {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_logits_type(ScalarType t) {
  return t == ScalarType::Double || t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

// The op's arguments, as schema.cpp describes them.
struct LossArguments : LossSettings {
  Tensor student, targets;
#define ENSDISTILL_TENSOR(name) std::optional<Tensor> name;
#include "loss_arguments.def"

  int64_t rows() const { return student.dim() == 2 ? student.size(0) : student.size(0) * student.size(1); }
  int64_t inner() const { return student.dim() == 2 ? student.size(0) : student.size(1); }
  int64_t classes() const { return student.size(student.dim() - 1); }
  bool sparse() const { return kind == Kind::topk; }
  int64_t members() const { return sparse() ? 1 : targets.size(0); }
  bool in_double() const { return student.scalar_type() == ScalarType::Double || targets.scalar_type() == ScalarType::Double; }
};

template <class E>
E value_of(const std::string& name) {
  E value{};
  STD_TORCH_CHECK(find_by_name(name, value), Names<E>::what, ": unknown value '", name, "'");
  return value;
}

inline void check_vector(const char* name, const std::optional<Tensor>& t, ScalarType type, int64_t size) {
  if (t)
    STD_TORCH_CHECK(t->scalar_type() == type && t->dim() == 1 && t->size(0) == size && t->is_contiguous(), name, ": expected a contiguous [", size,
                    "] of the type in the schema");
}

// Either the classes or the inner rows are neighbours in memory.
inline void check_layout(const char* name, const Tensor& t) {
  const int64_t d = t.dim();
  STD_TORCH_CHECK(t.stride(d - 1) == 1 || t.size(d - 1) == 1 || t.stride(d - 2) == 1 || t.size(d - 2) <= 1, name,
                  ": expected unit stride over the classes or over the rows");
}

inline void check_sparse(const LossArguments& a) {
  const Tensor& t = a.targets;
  STD_TORCH_CHECK(
      t.dim() == 2 && t.size(0) == a.rows() && t.is_contiguous() && (t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double),
      "targets: expected contiguous float32 or float64 [", a.rows(), ", k]");
  STD_TORCH_CHECK(a.ids && a.ids->dim() == 2 && a.ids->size(0) == t.size(0) && a.ids->size(1) == t.size(1) &&
                      a.ids->scalar_type() == ScalarType::Long && a.ids->is_contiguous(),
                  "ids: expected contiguous int64 of the targets' shape");
  STD_TORCH_CHECK(a.tail_mode != TailMode::tail || (a.tail && a.tail->dim() == 1 && a.tail->size(0) == a.rows() && a.tail->is_contiguous() &&
                                                    (a.tail->scalar_type() == ScalarType::Float || a.tail->scalar_type() == ScalarType::Double)),
                  "tail: expected contiguous float32 or float64 [", a.rows(), "] for tail_mode 'tail'");
}

inline void check_dense(const LossArguments& a) {
  const Tensor &s = a.student, &t = a.targets;
  const int64_t d = s.dim();
  bool fits = t.dim() == d + 1 && t.size(0) >= 1;
  for (int64_t i = 0; fits && i < d; ++i) fits = t.size(i + 1) == s.size(i);
  STD_TORCH_CHECK(fits, "targets: expected [K, ...] with the student's shape behind K");
  check_layout("targets", t);
  const bool codes = t.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(codes || is_logits_type(t.scalar_type()), "targets: expected floating-point numbers or uint8 codes");
  STD_TORCH_CHECK(!codes || a.kind == Kind::logits, "targets: uint8 codes are of logits");
  STD_TORCH_CHECK(codes == a.scale.has_value() && codes == a.offset.has_value(), "scale and offset: expected with uint8 codes, and only then");
  for (const auto* part : {&a.scale, &a.offset})
    if (part->has_value()) {
      const Tensor& x = part->value();
      STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 2 && x.size(0) == a.members() && x.size(1) == a.rows(),
                      "scale and offset: expected float32 [", a.members(), ", ", a.rows(), "]");
    }
}

// The checks that the losses over one softmax and over many sigmoids share.
inline void check_inputs(const LossArguments& a) {
  STD_TORCH_CHECK((a.student.dim() == 2 || a.student.dim() == 3) && is_logits_type(a.student.scalar_type()),
                  "student: expected floating-point [N, C] or [O, I, C]");
  STD_TORCH_CHECK(a.classes() >= 1, "student: expected at least one class");
  check_layout("student", a.student);
  a.sparse() ? check_sparse(a) : check_dense(a);
  check_vector("weights", a.weights, ScalarType::Double, a.members());
  check_vector("class_weights", a.class_weights, ScalarType::Double, a.classes());
  check_vector("sample_weights", a.sample_weights, ScalarType::Double, a.rows());
  STD_TORCH_CHECK(a.temperature > 0, "temperature: expected > 0, got ", a.temperature);
  STD_TORCH_CHECK(a.alpha >= 0 && a.alpha <= 1, "alpha: expected 0..1, got ", a.alpha);
  STD_TORCH_CHECK(a.label_smoothing >= 0 && a.label_smoothing <= 1, "label_smoothing: expected 0..1, got ", a.label_smoothing);
  STD_TORCH_CHECK(a.divisor > 0, "divisor: expected > 0, got ", a.divisor);
}

inline void check_arguments(const LossArguments& a) {
  check_inputs(a);
  check_vector("labels", a.labels, ScalarType::Long, a.rows());
  STD_TORCH_CHECK(a.alpha == 1 || a.labels, "alpha: below 1 it mixes in hard labels, and labels is None");
  STD_TORCH_CHECK(a.beta > 0 && a.beta < 1, "beta: expected above 0 and below 1, got ", a.beta);
}

using LossResult = std::tuple<Tensor, Tensor, Tensor>;  // loss, gradient, statistics

// The op's signature for every device; `Run` is the device's implementation.
template <LossResult (*Run)(const LossArguments&)>
LossResult distill_loss(Tensor student, Tensor targets
#define ENSDISTILL_TENSOR(name) , std::optional<Tensor> name
#define ENSDISTILL_CHOICE(type, name) , std::string name
#define ENSDISTILL_SETTING(type, name) , type name
#include "loss_arguments.def"
) {
  LossArguments a;
  a.student = std::move(student), a.targets = std::move(targets);
#define ENSDISTILL_TENSOR(name) a.name = std::move(name);
#define ENSDISTILL_CHOICE(type, name) a.name = value_of<type>(name);
#define ENSDISTILL_SETTING(type, name) a.name = name;
#include "loss_arguments.def"
  check_arguments(a);
  return Run(a);
}

}  // namespace ensdistill
