#include "prepared.h"

#include <algorithm>
#include <cmath>

#include "elements.h"

namespace ensdistill {
namespace {

bool is_weight(double w) { return w >= 0 && w < __builtin_inf(); }

}  // namespace

bool PreparedLoss::choose(const double* weights, Members& chosen) const {
  double total = 0;
  for (int64_t k = 0; k < members_; ++k) {
    const double w = weights ? weights[k] : 1;
    if (!is_weight(w)) return false;
    total += w;
    if (w > 0) chosen.used.push_back(k), chosen.weights.push_back(w);
  }
  for (double& w : chosen.weights) w /= total;
  return total > 0 && total <= 1e300;
}

bool PreparedLoss::accepts(const LossCall& call) const {
  const auto right = [&](int64_t label) { return label == call.ignore_index || (label >= 0 && label < call.classes); };
  if (call.labels && !std::all_of(call.labels, call.labels + call.rows, right)) return false;
  if (call.class_weights && !std::all_of(call.class_weights, call.class_weights + call.classes, is_weight)) return false;
  if (call.sample_weights && !std::all_of(call.sample_weights, call.sample_weights + call.rows, is_weight)) return false;
  if (call.kind != Kind::topk || call.tail_mode != TailMode::renormalize) return true;
  for (int64_t n = 0; n < call.rows; ++n) {  // rows of nothing but padding can't be renormalised
    bool some = !call.active(n);
    for (int64_t e = 0; e < call.entries && !some; ++e) some = read(call.targets.data, call.targets.type, n * call.entries + e) != -__builtin_inf();
    if (!some) return false;
  }
  return true;
}

bool PreparedLoss::run(const LossPointers& at) const {
  LossCall call = shape_;
  call.student.data = at.student, call.targets.data = at.targets;
  call.scale = at.scale, call.offset = at.offset, call.ids = at.ids, call.tail = at.tail;
  call.labels = at.labels, call.class_weights = at.class_weights, call.sample_weights = at.sample_weights;
  call.gradient = at.gradient, call.gradient_layout.data = at.gradient;
  Members members;
  if (!choose(at.weights, members) || !accepts(call)) return false;
  run_loss(call, members, in_double(), at.loss, nullptr);
  if (call.kind != Kind::topk && call.kind != Kind::probs) return true;
  const Element type = in_double() ? Element::f64 : Element::f32;
  for (int64_t i = call.reduction == Reduction::none ? call.rows : 1; i-- > 0;)
    if (std::isnan(read(at.loss, type, i))) return false;
  return true;
}

}  // namespace ensdistill
