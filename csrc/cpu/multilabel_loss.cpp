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

constexpr int64_t kJoined = 2048;  // classes of a long row

// Whether each of its rows begins where the one before ends.
bool is_flat(const Matrix& m, const MultilabelProblem& p) {
  if (!m.data) return true;
  return m.class_stride == 1 && (p.inner == 1 || m.inner_stride == p.classes) && (p.inner == p.rows || m.outer_stride == p.inner * p.classes);
}

// Whether all elements are alike, so that rows can be cut anywhere: only the sum of their losses is wanted.
bool can_be_joined(const MultilabelProblem& p) {
  return p.classes < kJoined && p.rows > 1 && p.reduction != Reduction::none && p.kind != Kind::topk && p.targets.type != Element::u8 &&
         !p.sample_weights && !p.class_weights && !p.positive_weights && is_flat(p.student, p) && is_flat(p.targets, p) && is_flat(p.marks, p) &&
         is_flat(p.mask, p) && is_flat(p.gradient_layout, p);
}

// Elements from `first` on as `rows` rows of so many classes.
MultilabelProblem joined(const MultilabelProblem& whole, int64_t first, int64_t rows, int64_t classes) {
  MultilabelProblem p = whole;
  for (Matrix* m : {&p.student, &p.targets, &p.marks, &p.mask, &p.gradient_layout}) {
    if (m->data) m->data = static_cast<const char*>(m->data) + first * bytes_of(m->type);
    m->outer_stride = rows * classes, m->inner_stride = classes;
  }
  if (p.gradient) p.gradient = static_cast<char*>(p.gradient) + first * bytes_of(p.gradient_layout.type);
  p.rows = p.inner = rows, p.classes = classes;
  return p;
}

void run_rows(const MultilabelProblem& p) {
  const Kernels& kernels = active_kernels();
  const size_t bytes = kernels.multilabel_scratch_bytes(p);
  const int64_t units = kernels.units(p), rows_of_unit = std::max<int64_t>(1, p.rows / units), grain = std::max<int64_t>(1, 16384 / p.classes);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, grain / rows_of_unit),
                              [&](int64_t begin, int64_t end) { kernels.multilabel_rows(p, begin, end, thread_scratch(bytes)); });
}

// Writes the rows' losses; returns how many there are.
int64_t run(const MultilabelProblem& p, bool in_double) {
  if (in_double) {
    torch::stable::parallel_for(0, p.rows, std::max<int64_t>(1, 2048 / p.classes), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) multilabel_row_in_double(p, n);
    });
    return p.rows;
  }
  if (!can_be_joined(p)) {
    run_rows(p);
    return p.rows;
  }
  // Short rows would end in a vector that is mostly empty, or be turned to lie across vectors.
  const int64_t elements = p.rows * p.classes, long_rows = elements / kJoined, left = elements % kJoined;
  if (long_rows > 0) run_rows(joined(p, 0, long_rows, kJoined));
  if (left == 0) return long_rows;
  MultilabelProblem end = joined(p, long_rows * kJoined, 1, left);
  end.row_loss += long_rows;
  run_rows(end);
  return long_rows + 1;
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
  const int64_t written = N > 0 ? run(p, in_double) : 0;

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
    for (int64_t n = 0; n < written; ++n) sum += row_loss[size_t(n)];
    *out = Real(sum * p.gradient_factor);
  };
  if (a.in_double()) write_loss(loss.mutable_data_ptr<double>());
  else write_loss(loss.mutable_data_ptr<float>());
  return {loss, gradient};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) { m.impl("multilabel_loss", TORCH_BOX(&ensdistill::multilabel_loss<&ensdistill::run_multilabel>)); }
