// distill_loss on the CPU: checks, the choice of instruction set, threads over rows or within them, the reduction.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "../bind.h"
#include "../checks.h"
#include "dispatch.h"
#include "inputs.h"
#include "memory.h"

namespace ensdistill {
namespace {

int64_t count_labelled(const LossArguments& a) {
  const int64_t N = a.rows(), C = a.classes();
  if (!a.labels) return 0;
  const int64_t* label = a.labels->const_data_ptr<int64_t>();
  int64_t labelled = N;
  for (int64_t n = 0; n < N; ++n) {
    if (label[n] == a.ignore_index) --labelled;
    else
      STD_TORCH_CHECK(label[n] >= 0 && label[n] < C, "labels: expected 0..", C - 1, " or ignore_index ", a.ignore_index, ", got ", label[n],
                      " in row ", n);
  }
  return labelled;
}

void run_parts(int parts, void (*part)(void*, int), void* context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) part(context, int(i));
  });
}
void run_alone(int parts, void (*part)(void*, int), void* context) {
  for (int i = 0; i < parts; ++i) part(context, i);
}

void run(const Problem& p, bool in_double) {
  const int threads = int(torch::stable::get_num_threads());
  const Team alone{1, &run_alone}, team{std::min(threads, kMaxParts), &run_parts};
  if (in_double) {
    torch::stable::parallel_for(0, p.rows, std::max<int64_t>(1, 2048 / p.classes), [&](int64_t begin, int64_t end) {
      const double nan = __builtin_nan("");
      for (int64_t n = begin; n < end; ++n) {
        if (p.active(n)) {
          row_in_double(p, n);
          continue;
        }
        p.row_loss[n] = 0;
        if (p.statistics) std::fill_n(p.statistics + 4 * n, 4, nan);
        const int64_t size = p.gradient_layout.type == Element::f64 ? 8 : p.gradient_layout.type == Element::f32 ? 4 : 2;
        char* g = static_cast<char*>(p.gradient);
        for (int64_t c = 0; g && c < p.classes; ++c)
          std::fill_n(g + (p.gradient_layout.at(n, p.inner) + c * p.gradient_layout.class_stride) * size, size, char(0));
      }
    });
    return;
  }
  const Kernels& kernels = active_kernels();
  const size_t bytes = kernels.scratch_bytes(p);
  const int64_t units = kernels.units(p), elements = p.rows / units * p.classes;
  // Fewer rows than threads, and wide ones: the threads share each row.
  if (units < threads && p.classes >= 16384) return kernels.rows(p, 0, units, thread_scratch(bytes), team);
  // A thread is worth waking for about 16k elements.
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { kernels.rows(p, begin, end, thread_scratch(bytes), alone); });
}

LossResult run_loss(const LossArguments& a) {
  const int64_t N = a.rows(), C = a.classes();
  std::vector<int64_t> members;
  std::vector<double> member_weights;
  choose_members(a, members, member_weights);
  const int64_t labelled = count_labelled(a);

  Tensor gradient = pooled_gradient(a);
  std::vector<double> row_loss(N), statistics(a.with_statistics ? 4 * N : 0);
  std::vector<float> smoothed;
  Problem p{};
  static_cast<LossCall&>(p) = call_of(a, gradient);
  p.members = members.data(), p.weights = member_weights.data(), p.members_used = int64_t(members.size());
  p.geometric = a.combiner != Combiner::prob && p.members_used > 1;
  for (int64_t c = 0; c < C; ++c) p.class_weight_sum += p.class_weights ? p.class_weights[c] : 1;
  if (p.hard() && p.label_smoothing > 0) {
    smoothed.assign((C + kMaxLanes - 1) / kMaxLanes * kMaxLanes, 0);
    for (int64_t c = 0; c < C; ++c) smoothed[c] = p.class_weights ? float(p.class_weights[c]) : 1.f;
    p.smoothed_classes = smoothed.data();
  }
  p.gradient_factor = p.row_factor();
  p.label_share = p.hard_share() / (p.reduction == Reduction::mean && labelled > 0 ? double(labelled) : 1.0);
  p.some_unlabelled = p.hard() && labelled < N;
  p.row_loss = row_loss.data();
  p.statistics = a.with_statistics ? statistics.data() : nullptr;
  if (N > 0) run(p, a.in_double() || a.temperature > kMaxFloatTemperature);

  const ScalarType loss_type = a.in_double() ? ScalarType::Double : ScalarType::Float;
  const bool per_row = a.reduction == Reduction::none;
  Tensor loss = torch::stable::new_empty(a.student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, loss_type);
  Tensor by_products = torch::stable::new_empty(a.student, std::vector<int64_t>{a.with_statistics ? N : 0, 4}, loss_type);
  const auto write = [&](auto* out, auto* statistics_out) {
    using Real = std::remove_pointer_t<decltype(out)>;
    std::copy(statistics.begin(), statistics.end(), statistics_out);
    if (per_row) {
      std::copy(row_loss.begin(), row_loss.end(), out);
      return;
    }
    double sum = 0;  // in row order, in double: the same bits for any number of threads
    for (double x : row_loss) sum += x;
    *out = Real(sum * p.gradient_factor);
  };
  if (a.in_double()) write(loss.mutable_data_ptr<double>(), by_products.mutable_data_ptr<double>());
  else write(loss.mutable_data_ptr<float>(), by_products.mutable_data_ptr<float>());
  return {loss, gradient, by_products};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) { m.impl("distill_loss", TORCH_BOX(&ensdistill::distill_loss<&ensdistill::run_loss>)); }
