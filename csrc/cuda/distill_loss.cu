// distill_loss on CUDA: checks, the choice of plan, launches on torch's current stream. Nothing here waits for the device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "distill_loss.cuh"
#include "runtime.cuh"

namespace ensdistill::cuda {
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

template <class Student, class Group, bool kResident>
void launch_distill_rows(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  const int64_t blocks = (problem.rows + plan.rows_per_block() - 1) / plan.rows_per_block();
  launch(distill_rows<Student, Group, kResident>, unsigned(std::min<int64_t>(blocks, 0x7fffffff)), plan.threads, plan.shared_bytes, stream, problem,
         plan.lanes);
}

template <class Student>
void launch_plan(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (plan.tile) launch_distill_rows<Student, Tile, true>(problem, plan, stream);
  else if (plan.resident) launch_distill_rows<Student, Block, true>(problem, plan, stream);
  else launch_distill_rows<Student, Block, false>(problem, plan, stream);
}

void launch_rows(const Problem& problem, const Plan& plan, bool in_double, cudaStream_t stream) {
  if (in_double) return launch_distill_rows<Any, Block, false>(problem, plan, stream);
  switch (problem.student_type) {
    case Element::f32: return launch_plan<float>(problem, plan, stream);
    case Element::bf16: return launch_plan<Bf16>(problem, plan, stream);
    default: return launch_plan<F16>(problem, plan, stream);
  }
}

// What these kernels don't do yet. Said, never done otherwise.
void refuse_unless_implemented(const LossArguments& a) {
  STD_TORCH_CHECK(a.kind == "logits", "distill_loss on CUDA takes logits or codes so far, got targets of kind '", a.kind, "'");
  STD_TORCH_CHECK(a.divergence == "forward_kl", "distill_loss on CUDA has forward_kl so far, got '", a.divergence, "'");
  STD_TORCH_CHECK(
      a.student.dim() == 2 && (a.student.stride(1) == 1 || a.student.size(1) == 1) && (a.targets.stride(2) == 1 || a.targets.size(2) == 1),
      "distill_loss on CUDA takes rows of contiguous classes, [N, C], so far");
  STD_TORCH_CHECK(!a.class_weights && !a.sample_weights && a.z_loss == 0 && !a.with_statistics,
                  "distill_loss on CUDA has no class_weights, sample_weights, z_loss or statistics so far");
  STD_TORCH_CHECK(a.reduction != "sum" || a.divisor == 1, "distill_loss on CUDA has no reduction 'batchmean' so far");
}

std::tuple<Tensor, Tensor, Tensor> distill_loss(Tensor student, Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                                std::optional<Tensor> ids, std::optional<Tensor> tail, std::optional<Tensor> weights,
                                                std::optional<Tensor> labels, std::optional<Tensor> class_weights,
                                                std::optional<Tensor> sample_weights, std::string kind, std::string divergence, double beta,
                                                double temperature, double alpha, std::string combiner, std::string tail_mode, int64_t ignore_index,
                                                double label_smoothing, double z_loss, std::string reduction, double divisor, bool with_gradient,
                                                bool with_statistics) {
  const LossArguments arguments{student,         targets, scale,      offset,  ids,           tail,           weights,  labels,    class_weights,
                                sample_weights,  kind,    divergence, beta,    temperature,   alpha,          combiner, tail_mode, ignore_index,
                                label_smoothing, z_loss,  reduction,  divisor, with_gradient, with_statistics};
  check_arguments(arguments);
  refuse_unless_implemented(arguments);
  const int64_t K = arguments.members();
  const int64_t N = student.size(0), C = student.size(1);
  STD_TORCH_CHECK(K <= kMaxMembers, "targets: expected at most ", kMaxMembers, " members on CUDA, got ", K);
  STD_TORCH_CHECK(C <= kMaxClasses, "student: expected at most ", kMaxClasses, " classes on CUDA, got ", C);
  const auto check_device = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(on_same_device(student, t), name, ": expected on the student's device, cuda:", student.get_device_index());
  };
  check_device("student", student);
  check_device("targets", targets);
  if (scale) check_device("scale", *scale), check_device("offset", *offset);
  if (weights) check_device("weights", *weights);
  if (labels) check_device("labels", *labels);
  const OnDevice device(student);
  const cudaStream_t stream = device.stream();

  const bool in_double = student.scalar_type() == ScalarType::Double || targets.scalar_type() == ScalarType::Double;
  const ScalarType real = in_double ? ScalarType::Double : ScalarType::Float;
  const bool per_row = reduction == "none";
  Tensor gradient = torch::stable::new_empty(student, std::vector<int64_t>{with_gradient ? N : 0, C});
  Tensor loss = torch::stable::new_empty(student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, real);
  Tensor statistics = torch::stable::new_empty(student, std::vector<int64_t>{0, 4}, real);
  if (per_row && N == 0) return {loss, gradient, statistics};
  Tensor row_loss = per_row ? loss : torch::stable::new_empty(student, std::vector<int64_t>{N}, real);

  // One allocation: the header, then weights and numbers of the members that count.
  const int64_t weights_at = sizeof(Prepared), members_at = weights_at + K * int64_t(sizeof(double));
  Tensor workspace = torch::stable::new_empty(student, std::vector<int64_t>{members_at + K * int64_t(sizeof(int))}, ScalarType::Byte);
  char* const work = static_cast<char*>(workspace.mutable_data_ptr());
  auto* prepared = reinterpret_cast<Prepared*>(work);
  auto* member_weights = reinterpret_cast<double*>(work + weights_at);
  auto* members = reinterpret_cast<int*>(work + members_at);

  Problem problem{};
  problem.rows = N;
  problem.classes = int(C);
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
  problem.prepared = prepared;
  problem.member = members;
  problem.weight = member_weights;
  problem.geometric = combiner != "prob";
  problem.mean = reduction == "mean";
  problem.labels = labels ? labels->const_data_ptr<int64_t>() : nullptr;
  problem.ignore_index = ignore_index;
  problem.temperature = temperature;
  problem.alpha = alpha;
  problem.label_smoothing = label_smoothing;
  problem.gradient = with_gradient && N > 0 ? gradient.mutable_data_ptr() : nullptr;
  problem.row_loss = row_loss.mutable_data_ptr();

  fill_zero(prepared, sizeof(Prepared), stream);
  const int64_t count_blocks = labels ? std::clamp<int64_t>((N + 4095) / 4096, 1, 256) : 1;
  launch(prepare, unsigned(count_blocks), 256, 0, stream, prepared, members, member_weights, weights ? weights->const_data_ptr<double>() : nullptr,
         int(K), problem.labels, ignore_index, N);
  if (N > 0) {
    const int shared_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index());
    const int vector = in_double ? 1 : 16 / int(problem.student_type == Element::f32 ? sizeof(float) : sizeof(Bf16));
    const Plan plan = choose_plan(int(C), int(K), K > 1 && !problem.geometric, vector, shared_limit);
    problem.steps = plan.steps;
    launch_rows(problem, plan, in_double, stream);
  }
  if (!per_row) {
    if (in_double) launch(reduce_rows<double>, 1, kMaxBlockThreads, 0, stream, problem, loss.mutable_data_ptr<double>());
    else launch(reduce_rows<float>, 1, kMaxBlockThreads, 0, stream, problem, loss.mutable_data_ptr<float>());
  }
  return {loss, gradient, statistics};
}

}  // namespace
}  // namespace ensdistill::cuda

#ifndef ENSDISTILL_SHIM
STABLE_TORCH_LIBRARY_IMPL(ensdistill, CUDA, m) { m.impl("distill_loss", TORCH_BOX(&ensdistill::cuda::distill_loss)); }
#endif
