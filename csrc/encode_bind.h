// The encoders' arguments, their checks and their results, the same for every device. Python has checked them already, with messages for
// users (encoders.py); these are the backstop for calls of torch.ops.ensdistill directly, or through torch.compile.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "bind.h"
#include "encode.h"

namespace ensdistill {

inline StoredLogits stored_logits(const char* name, const Tensor& t, bool codes_allowed) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) >= 1 && t.size(2) >= 1, name, ": expected [K, N, C] with at least one member and one class");
  STD_TORCH_CHECK(t.stride(2) == 1 || t.size(2) == 1, name, ": expected unit stride over classes");
  STD_TORCH_CHECK(is_logits_type(t.scalar_type()) || (codes_allowed && t.scalar_type() == ScalarType::Byte), name, ": expected floating-point logits",
                  codes_allowed ? " or uint8 codes" : "");
  return {t.numel() ? t.const_data_ptr() : nullptr, element_of(t.scalar_type()), t.size(2), t.stride(0), t.stride(1)};
}

// The checks that all ops of a mixture begin with. The weights' values are where the device is, and aren't looked at here.
struct EnsembleArguments {
  Tensor targets;
  std::optional<Tensor> scale, offset, weights;
  double temperature;
  Combiner combiner;

  int64_t members() const { return targets.size(0); }
  int64_t rows() const { return targets.size(1); }
  int64_t classes() const { return targets.size(2); }
  bool geometric() const { return combiner != Combiner::prob; }  // averages logits, not probabilities
  const double* weight() const { return weights ? weights->const_data_ptr<double>() : nullptr; }
};

inline StoredLogits checked_logits(const EnsembleArguments& a) {
  StoredLogits logits = stored_logits("targets", a.targets, true);
  const bool codes = logits.type == Element::u8;
  STD_TORCH_CHECK(codes == a.scale.has_value() && codes == a.offset.has_value(), "scale and offset: expected with uint8 codes, and only then");
  if (codes) {
    for (const Tensor* t : {&*a.scale, &*a.offset})
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->dim() == 2 && t->size(0) == a.members() && t->size(1) == a.rows(),
                      "scale and offset: expected float32 [", a.members(), ", ", a.rows(), "]");
    logits.scale = a.rows() ? a.scale->const_data_ptr<float>() : nullptr;
    logits.offset = a.rows() ? a.offset->const_data_ptr<float>() : nullptr;
    for (int d = 0; d < 2; ++d) logits.scale_strides[d] = a.scale->stride(d), logits.offset_strides[d] = a.offset->stride(d);
  }
  STD_TORCH_CHECK(a.temperature > 0, "temperature: expected > 0, got ", a.temperature);
  STD_TORCH_CHECK(!a.weights || (a.weights->scalar_type() == ScalarType::Double && a.weights->dim() == 1 && a.weights->size(0) == a.members() &&
                                 a.weights->is_contiguous()),
                  "weights: expected contiguous float64 [", a.members(), "]");
  return logits;
}

inline void check_k(const EnsembleArguments& a, int64_t k) {
  STD_TORCH_CHECK(k >= 1 && k <= a.classes(), "k: expected 1..", a.classes(), ", got ", k);
}

inline void check_draws(const EnsembleArguments& a, int64_t draws, const std::optional<Tensor>& row_ids) {
  STD_TORCH_CHECK(draws >= 1 && draws <= std::numeric_limits<int32_t>::max(), "draws: expected 1..2147483647, got ", draws);
  STD_TORCH_CHECK(
      !row_ids || (row_ids->scalar_type() == ScalarType::Long && row_ids->dim() == 1 && row_ids->size(0) == a.rows() && row_ids->is_contiguous()),
      "row_ids: expected contiguous int64 [", a.rows(), "]");
}

// Ids are written through this: int32 wherever the classes fit.
struct Ids {
  int32_t* narrow = nullptr;
  int64_t* wide = nullptr;

  ENSDISTILL_HD void set(int64_t at, int64_t id) const {
    if (narrow) narrow[at] = int32_t(id);
    else wide[at] = id;
  }
};
inline Tensor new_ids(const EnsembleArguments& a, int64_t entries) {
  const bool wide = a.classes() - 1 > std::numeric_limits<int32_t>::max();
  return torch::stable::new_empty(a.targets, {a.rows(), entries}, wide ? ScalarType::Long : ScalarType::Int);
}
inline Ids ids_in(Tensor& t) {
  if (t.scalar_type() == ScalarType::Int) return {t.mutable_data_ptr<int32_t>(), nullptr};
  return {nullptr, t.mutable_data_ptr<int64_t>()};
}

struct CodesResult {
  Tensor codes, scale, offset, kl;
  explicit CodesResult(const Tensor& logits)
      : codes(torch::stable::new_empty(logits, {logits.size(0), logits.size(1), logits.size(2)}, ScalarType::Byte)),
        scale(torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, ScalarType::Float)),
        offset(torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, ScalarType::Float)),
        kl(torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, ScalarType::Double)) {}
};
struct TopKResult {
  Tensor ids, log_probs, tail, kl;
  TopKResult(const EnsembleArguments& a, int64_t k)
      : ids(new_ids(a, k)),
        log_probs(torch::stable::new_empty(a.targets, {a.rows(), k}, ScalarType::Float)),
        tail(torch::stable::new_empty(a.targets, {a.rows()}, ScalarType::Float)),
        kl(torch::stable::new_empty(a.targets, {a.rows()}, ScalarType::Double)) {}
};
struct CountsResult {
  Tensor ids, counts, kl;
  CountsResult(const EnsembleArguments& a, int64_t entries)
      : ids(new_ids(a, entries)),
        counts(torch::stable::new_empty(a.targets, {a.rows(), entries}, ScalarType::Int)),
        kl(torch::stable::new_empty(a.targets, {a.rows()}, ScalarType::Double)) {}
};

}  // namespace ensdistill
