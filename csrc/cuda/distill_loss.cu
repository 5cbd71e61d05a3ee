// distill_loss on CUDA: checks, the choice of plan, launches on torch's current stream. Nothing here waits for the device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../bind.h"
#include "../rowmath.h"
#include "prepare.cuh"
#include "rows/rows.h"
#include "runtime.cuh"
#include "torch_device.cuh"

namespace ensdistill::cuda {

#ifndef ENSDISTILL_SHIM
void check(cudaError_t error) { STD_CUDA_CHECK(error); }
#endif

namespace {

void check_devices(const LossArguments& a) {
  const auto check = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(on_same_device(a.student, t), name, ": expected on the student's device, cuda:", a.student.get_device_index());
  };
  check("targets", a.targets);
  const std::pair<const char*, const std::optional<Tensor>*> others[] = {{"scale", &a.scale},
                                                                         {"offset", &a.offset},
                                                                         {"ids", &a.ids},
                                                                         {"tail", &a.tail},
                                                                         {"weights", &a.weights},
                                                                         {"labels", &a.labels},
                                                                         {"class_weights", &a.class_weights},
                                                                         {"sample_weights", &a.sample_weights}};
  for (const auto& [name, t] : others)
    if (*t) check(name, **t);
}

// Rows follow each other without a gap, from a boundary of 16 bytes on.
bool is_flat(const Matrix& m, int64_t outer, int64_t inner, int64_t classes) {
  return m.class_stride == 1 && (m.inner_stride == classes || inner == 1) && (m.outer_stride == inner * classes || outer == 1) &&
         reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

// Whether each row begins at a boundary of 16 bytes.
bool begins_aligned(const Matrix& m, int64_t outer, int64_t inner) {
  const int64_t size = bytes_of(m.type);
  return (inner == 1 || m.inner_stride * size % 16 == 0) && (outer == 1 || m.outer_stride * size % 16 == 0) &&
         reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

Shape shape_of(const LossArguments& a, const Problem& p, int device) {
  const int64_t K = a.members(), outer = p.rows / p.inner;
  Shape s{};
  s.rows = p.rows, s.classes = p.classes, s.members = K, s.entries = p.entries;
  s.doubles = a.in_double() || a.temperature > kMaxFloatTemperature || !(a.sparse() || have_kernels(p.student.type, p.targets.type));
  s.student_bytes = int(bytes_of(p.student.type)), s.target_bytes = a.sparse() ? 0 : int(bytes_of(p.targets.type));
  s.sparse = a.sparse(), s.geometric = p.geometric;
  s.keeps_softmax = p.exact_logs;
  s.unit_classes = p.student.class_stride == 1 && (a.sparse() || p.targets.class_stride == 1);
  // The gradient's rows are aligned where the student's could be: its memory is new.
  s.aligned = !s.doubles && p.classes * s.student_bytes % 16 == 0 && begins_aligned(p.student, outer, p.inner);
  s.flat = !a.sparse() && is_flat(p.student, outer, p.inner, p.classes) && is_flat(p.targets, outer, p.inner, p.classes) &&
           p.target_member_stride * bytes_of(p.targets.type) % 16 == 0;
  s.shared_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  s.clusters = device_attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
  return s;
}

// The loss, and where the caller wants them the by-products: of dense rows a launch of their own, which reads everything again.
void launch(Problem p, Shape shape, cudaStream_t stream) {
  const auto with_plan = [&](const Plan& plan) {
    STD_TORCH_CHECK(plan.shared_bytes <= shape.shared_limit,
                    shape.sparse ? "ids: expected fewer entries for each row" : "targets: expected fewer members", " on this device: the plan needs ",
                    plan.shared_bytes, " bytes of shared memory, and a block can have ", shape.shared_limit);
    p.lanes = plan.lanes, p.cluster = plan.blocks > 1, p.rows_per_block = plan.rows_per_block, p.steps = plan.steps, p.buffers = plan.buffers,
    p.table_size = plan.table_size;
    p.member_softmax_at = plan.member_softmax_at, p.members_at = plan.members_at, p.meeting_at = plan.meeting_at, p.shelves_at = plan.shelves_at,
    p.index_at = plan.index_at;
    launch_rows_of(p, plan, stream);
  };
  const Planner planner(shape);
  void* const statistics = p.statistics;
  if (!shape.sparse) p.statistics = nullptr;
  with_plan(planner.choose());
  if (shape.sparse || !statistics) return;
  p.statistics = statistics, p.gradient = nullptr;
  shape.doubles = shape.doubles || !shape.unit_classes;
  with_plan(Planner(shape).lay(shape.doubles ? Layout::doubles : Layout::reread, 256));
}

LossResult run_loss(const LossArguments& a) {
  check_devices(a);
  const int64_t K = a.members(), N = a.rows(), C = a.classes();
  STD_TORCH_CHECK(K <= kMaxMembers, "targets: expected at most ", kMaxMembers, " members on CUDA, got ", K);
  STD_TORCH_CHECK(C <= kMaxClasses, "student: expected at most ", kMaxClasses, " classes on CUDA, got ", C);
  const OnDevice on(a.student);
  const cudaStream_t stream = on.stream();

  const ScalarType real = a.in_double() ? ScalarType::Double : ScalarType::Float;
  const bool per_row = a.reduction == Reduction::none;
  Tensor gradient = new_gradient(a);
  Tensor loss = torch::stable::new_empty(a.student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, real);
  Tensor statistics = torch::stable::new_empty(a.student, std::vector<int64_t>{a.with_statistics ? N : 0, 4}, real);
  if (per_row && N == 0) return {loss, gradient, statistics};
  Tensor row_loss = per_row ? loss : torch::stable::new_empty(a.student, std::vector<int64_t>{N}, real);

  // One allocation: the header, then weights of the members that count, the blocks' sums of the loss, the members' numbers.
  const int64_t weights_at = sizeof(Prepared), sums_at = weights_at + K * int64_t(sizeof(double)),
                members_at = sums_at + sums_of(N) * int64_t(sizeof(double));
  Tensor workspace = torch::stable::new_empty(a.student, std::vector<int64_t>{members_at + K * int64_t(sizeof(int))}, ScalarType::Byte);
  auto* const work = static_cast<unsigned char*>(workspace.mutable_data_ptr());
  auto* prepared = reinterpret_cast<Prepared*>(work);
  auto* member_weights = reinterpret_cast<double*>(work + weights_at);
  auto* sums = reinterpret_cast<double*>(work + sums_at);
  auto* members = reinterpret_cast<int*>(work + members_at);

  Problem p{};
  static_cast<LossCall&>(p) = call_of(a, gradient);
  p.prepared = prepared, p.member = members, p.weight = member_weights;
  p.geometric = a.combiner != Combiner::prob && K > 1;
  p.factor = p.row_factor(), p.share = p.hard_share();
  p.exact_logs = needs_log_of_little(p.divergence);
  p.doubles = a.in_double();
  p.row_loss = row_loss.mutable_data_ptr();
  p.statistics = a.with_statistics && N > 0 ? statistics.mutable_data_ptr() : nullptr;

  fill_zero(prepared, sizeof(Prepared), stream);
  const int64_t count_blocks = a.labels && p.reduction == Reduction::mean ? std::clamp<int64_t>((N + 4095) / 4096, 1, 256) : 1;
  launch_clusters(prepare, dim3(unsigned(count_blocks)), 1, dim3(256), 0, stream, prepared, members, member_weights,
                  a.weights ? a.weights->const_data_ptr<double>() : nullptr, int(K), static_cast<const LossCall&>(p));
  if (N > 0) launch(p, shape_of(a, p, on.index()), stream);
  if (!per_row) {
    if (p.doubles) launch_sum(row_loss.const_data_ptr<double>(), N, p.factor, sums, loss.mutable_data_ptr<double>(), stream);
    else launch_sum(row_loss.const_data_ptr<float>(), N, p.factor, sums, loss.mutable_data_ptr<float>(), stream);
  }
  return {loss, gradient, statistics};
}

}  // namespace

int registers_of_plan(Layout layout, Element student, Element target, Divergence divergence, bool sparse) {
  int registers = 0;
  Plan plan{};
  plan.layout = layout, plan.at_once = !sparse, plan.registers = &registers;
  Problem p{};
  p.student.type = student, p.targets.type = target, p.divergence = divergence, p.kind = sparse ? Kind::topk : Kind::logits;
  launch_rows_of(p, plan, nullptr);
  return registers;
}

}  // namespace ensdistill::cuda

#include "multilabel_loss.cuh"

#ifndef ENSDISTILL_SHIM
STABLE_TORCH_LIBRARY_IMPL(ensdistill, CUDA, m) {
  m.impl("distill_loss", TORCH_BOX(&ensdistill::distill_loss<&ensdistill::cuda::run_loss>));
  m.impl("multilabel_loss", TORCH_BOX(&ensdistill::multilabel_loss<&ensdistill::cuda::run_multilabel>));
}
#endif
