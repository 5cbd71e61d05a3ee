#include "run_loss.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "dispatch.h"
#include "memory.h"
#include "problem.h"

namespace ensdistill {
namespace {

void run_parts(int parts, void (*part)(void*, int), void* context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) part(context, int(i));
  });
}
void run_alone(int parts, void (*part)(void*, int), void* context) {
  for (int i = 0; i < parts; ++i) part(context, i);
}

void run_rows(const Problem& p, bool in_double) {
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

// In double, and in an order that only the number of rows decides: the same bits for any number of threads. One sum would wait for itself.
double sum_of(const double* x, int64_t count) {
  constexpr int64_t sums = 8;
  double sum[sums] = {}, total = 0;
  const int64_t whole = count / sums * sums;
  for (int64_t i = 0; i < whole; i += sums)
    for (int64_t j = 0; j < sums; ++j) sum[j] += x[i + j];
  for (int64_t i = whole; i < count; ++i) total += x[i];
  for (double part : sum) total += part;
  return total;
}

template <class Real>
void write(const double* rows, int64_t count, const std::vector<double>& statistics, bool per_row, double factor, void* loss, void* by_products) {
  std::copy(statistics.begin(), statistics.end(), static_cast<Real*>(by_products));
  if (per_row) std::copy(rows, rows + count, static_cast<Real*>(loss));
  else *static_cast<Real*>(loss) = Real(sum_of(rows, count) * factor);
}

}  // namespace

void run_loss(const LossCall& call, const Members& members, bool in_double, void* loss, void* statistics_out) {
  const int64_t N = call.rows, C = call.classes;
  const int64_t labelled = call.labels ? N - std::count(call.labels, call.labels + N, call.ignore_index) : 0;
  const std::unique_ptr<double[]> row_loss(new double[size_t(N)]);  // every row writes its own
  std::vector<double> statistics(statistics_out ? 4 * N : 0);
  std::vector<float> smoothed;
  Problem p{};
  static_cast<LossCall&>(p) = call;
  p.members = members.used.data(), p.weights = members.weights.data(), p.members_used = int64_t(members.used.size());
  p.geometric = p.combiner != Combiner::prob && p.members_used > 1;
  for (int64_t c = 0; c < C; ++c) p.class_weight_sum += p.class_weights ? p.class_weights[c] : 1;
  if (p.hard() && p.label_smoothing > 0) {
    smoothed.assign((C + kMaxLanes - 1) / kMaxLanes * kMaxLanes, 0);
    for (int64_t c = 0; c < C; ++c) smoothed[c] = p.class_weights ? float(p.class_weights[c]) : 1.f;
    p.smoothed_classes = smoothed.data();
  }
  p.gradient_factor = p.row_factor();
  p.label_share = p.hard_share() / (p.reduction == Reduction::mean && labelled > 0 ? double(labelled) : 1.0);
  p.some_unlabelled = p.hard() && labelled < N;
  p.row_loss = row_loss.get();
  p.statistics = statistics_out ? statistics.data() : nullptr;
  if (N > 0) run_rows(p, in_double || p.temperature > kMaxFloatTemperature);
  const bool per_row = p.reduction == Reduction::none;
  if (in_double) write<double>(row_loss.get(), N, statistics, per_row, p.gradient_factor, loss, statistics_out);
  else write<float>(row_loss.get(), N, statistics, per_row, p.gradient_factor, loss, statistics_out);
}

}  // namespace ensdistill
