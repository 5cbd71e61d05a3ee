// multilabel_loss on the CPU: the rows' factors, threads over rows, the reduction.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../multilabel_bind.h"
#include "dispatch.h"
#include "elements.h"
#include "inputs.h"

namespace ensdistill {
namespace {

// Rows with a known label that is not masked; a row is usually decided by its first class.
int64_t count_marked(const MultilabelProblem& p) {
  int64_t marked = 0;
  for (int64_t n = 0; n < p.rows; ++n)
    for (int64_t c = 0; c < p.classes; ++c) {
      if (p.mask.data && read(p.mask.data, Element::u8, p.mask.at(n, p.inner) + c * p.mask.class_stride) == 0) continue;
      if (read(p.marks.data, p.marks.type, p.marks.at(n, p.inner) + c * p.marks.class_stride) == p.unknown()) continue;
      ++marked;
      break;
    }
  return marked;
}

std::vector<float> padded_floats(const double* weights, int64_t classes) {
  std::vector<float> floats(size_t(weights ? (classes + kMaxLanes - 1) / kMaxLanes * kMaxLanes : 0));
  for (int64_t c = 0; weights && c < classes; ++c) floats[size_t(c)] = float(weights[c]);
  return floats;
}

void run(const MultilabelProblem& p, bool in_double) {
  const int64_t grain = std::max<int64_t>(1, 16384 / p.classes);
  if (in_double)
    return torch::stable::parallel_for(0, p.rows, std::max<int64_t>(1, grain / 8), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) multilabel_row_in_double(p, n);
    });
  const Kernels& kernels = active_kernels();
  const size_t bytes = kernels.multilabel_scratch_bytes(p);
  const int64_t units = kernels.units(p), rows_of_unit = std::max<int64_t>(1, p.rows / units);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, grain / rows_of_unit),
                              [&](int64_t begin, int64_t end) { kernels.multilabel_rows(p, begin, end, thread_scratch(bytes)); });
}

MultilabelResult run_multilabel(const MultilabelArguments& m) {
  const LossArguments& a = m.shared;
  const int64_t N = a.rows();
  const Members members = choose_members(a);

  Tensor gradient = pooled_gradient(a);
  std::vector<double> row_loss(static_cast<size_t>(N));
  MultilabelProblem p{};
  static_cast<MultilabelCall&>(p) = multilabel_call_of(m, gradient);
  p.members = members.used.data(), p.weights = members.weights.data(), p.members_used = int64_t(members.used.size());
  p.geometric = a.combiner != Combiner::prob && p.members_used > 1;
  const std::vector<float> classes = padded_floats(p.class_weights, p.classes), positives = padded_floats(p.positive_weights, p.classes);
  p.classes_f32 = classes.data(), p.positives_f32 = positives.data();
  p.soft_share = p.alpha * p.temperature * p.temperature,
  p.hard_share = p.hard_share_of(p.marked() && p.reduction == Reduction::mean ? count_marked(p) : 0);
  p.gradient_factor = p.factor();
  p.row_loss = row_loss.data();
  const bool in_double = a.in_double() || a.temperature > kMaxFloatTemperature;
  if (N > 0) run(p, in_double);

  const ScalarType loss_type = a.in_double() ? ScalarType::Double : ScalarType::Float;
  const bool per_row = a.reduction == Reduction::none;
  Tensor loss = torch::stable::new_empty(a.student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, loss_type);
  const auto write_loss = [&](auto* out) {
    using Real = std::remove_pointer_t<decltype(out)>;
    if (per_row) {
      std::copy(row_loss.begin(), row_loss.end(), out);
      return;
    }
    double sum = 0;  // in row order, in double: the same bits for any number of threads
    for (double x : row_loss) sum += x;
    *out = Real(sum * p.gradient_factor);
  };
  if (a.in_double()) write_loss(loss.mutable_data_ptr<double>());
  else write_loss(loss.mutable_data_ptr<float>());
  return {loss, gradient};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) { m.impl("multilabel_loss", TORCH_BOX(&ensdistill::multilabel_loss<&ensdistill::run_multilabel>)); }
