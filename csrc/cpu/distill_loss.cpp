// distill_loss on the CPU: checks, the choice of instruction set, threads over rows, the reduction.
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "dispatch.h"

namespace ensdistill {
namespace {

Element element_of(ScalarType t) {
  switch (t) {
    case ScalarType::Double: return Element::f64;
    case ScalarType::Float: return Element::f32;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Half: return Element::f16;
    default: return Element::u8;
  }
}

// Faulting a large fresh buffer in 4 KiB pages costs as much as the arithmetic; ask for 2 MiB ones. Advice only.
void prefer_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// One buffer for each thread, kept between calls and grown when a wider row comes.
void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    capacity = (bytes + 63) / 64 * 64;
    buffer.reset(std::aligned_alloc(64, capacity));
    STD_TORCH_CHECK(buffer, "distill_loss: no memory for ", capacity, " bytes of scratch");
  }
  return buffer.get();
}

std::tuple<Tensor, Tensor> distill_loss(Tensor student, Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                        std::optional<Tensor> weights, std::optional<Tensor> labels, double temperature, double alpha,
                                        std::string combiner, int64_t ignore_index, double label_smoothing, std::string reduction,
                                        bool with_gradient) {
  const int64_t K = check_arguments({student, targets, scale, offset, weights, labels, temperature, alpha, combiner, label_smoothing, reduction});
  const int64_t N = student.size(0), C = student.size(1);

  // Members without weight are never read: a NaN of theirs can't matter, and they cost nothing.
  std::vector<int64_t> members;
  std::vector<double> member_weights;
  double total = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double w = weights ? weights->const_data_ptr<double>()[k] : 1.0;
    STD_TORCH_CHECK(w >= 0 && w <= 1e300, "weights: expected finite values of at least 0, got ", w, " for member ", k);
    total += w;
    if (w > 0) members.push_back(k), member_weights.push_back(w);
  }
  STD_TORCH_CHECK(total > 0, "weights: expected a sum above 0");
  for (double& w : member_weights) w /= total;

  int64_t counted = N;
  const int64_t* label = labels ? labels->const_data_ptr<int64_t>() : nullptr;
  if (label)
    for (int64_t n = 0; n < N; ++n) {
      if (label[n] == ignore_index) --counted;
      else
        STD_TORCH_CHECK(label[n] >= 0 && label[n] < C, "labels: expected 0..", C - 1, " or ignore_index ", ignore_index, ", got ", label[n],
                        " in row ", n);
    }

  const bool in_double = student.scalar_type() == ScalarType::Double || targets.scalar_type() == ScalarType::Double;
  const ScalarType loss_type = in_double ? ScalarType::Double : ScalarType::Float;
  const std::vector<int64_t> gradient_size{with_gradient ? N : 0, C};
  Tensor gradient = torch::stable::new_empty(student, gradient_size);
  void* gradient_data = with_gradient && N > 0 ? gradient.mutable_data_ptr() : nullptr;
  if (gradient_data) prefer_huge_pages(gradient_data, size_t(N) * C * aoti_torch_dtype_element_size(int32_t(student.scalar_type())));

  std::vector<double> row_loss(N);
  Problem problem{};
  problem.rows = N;
  problem.classes = C;
  problem.student = student.const_data_ptr();
  problem.student_type = element_of(student.scalar_type());
  problem.student_stride = student.stride(0);
  problem.targets = targets.const_data_ptr();
  problem.target_type = element_of(targets.scalar_type());
  problem.target_member_stride = targets.stride(0);
  problem.target_row_stride = targets.stride(1);
  if (scale) {
    problem.scale = scale->const_data_ptr<float>();
    problem.offset = offset->const_data_ptr<float>();
    problem.scale_member_stride = scale->stride(0);
    problem.scale_row_stride = scale->stride(1);
    problem.offset_member_stride = offset->stride(0);
    problem.offset_row_stride = offset->stride(1);
  }
  problem.members = members.data();
  problem.weights = member_weights.data();
  problem.members_used = int64_t(members.size());
  problem.geometric = combiner != "prob";
  problem.labels = label;
  problem.ignore_index = ignore_index;
  problem.temperature = temperature;
  problem.alpha = alpha;
  problem.label_smoothing = label_smoothing;
  problem.gradient_factor = reduction == "mean" ? 1.0 / (counted > 0 ? counted : 1) : 1.0;
  problem.gradient = gradient_data;
  problem.row_loss = row_loss.data();

  const RowsFunction rows = in_double ? &rows_float64 : active_kernels().rows;
  // A thread is worth waking for about 16k elements; narrow rows come in groups of lanes, which must not be split.
  const int64_t group = kMaxLanes, groups = (N + group - 1) / group;
  const int64_t grain = std::max<int64_t>(1, 16384 / (C * group));
  if (N > 0 && C * group > 16384 && N < 64) {  // few wide rows: one row is work enough for a thread
    torch::stable::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) { rows(problem, begin, end, thread_scratch(scratch_bytes(C))); });
  } else if (N > 0) {
    torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
      rows(problem, begin * group, std::min(N, end * group), thread_scratch(scratch_bytes(C)));
    });
  }

  const bool per_row = reduction == "none";
  Tensor loss = torch::stable::new_empty(student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, loss_type);
  const auto write = [&](auto* out) {
    if (per_row) {
      for (int64_t n = 0; n < N; ++n) out[n] = row_loss[n];
      return;
    }
    double sum = 0;  // in row order, in double: the same bits whatever the number of threads
    for (double x : row_loss) sum += x;
    *out = sum * problem.gradient_factor;
  };
  if (in_double) write(loss.mutable_data_ptr<double>());
  else write(loss.mutable_data_ptr<float>());
  return {loss, gradient};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) { m.impl("distill_loss", TORCH_BOX(&ensdistill::distill_loss)); }
