// multilabel_loss on CUDA: checks and launches on torch's current stream. Nothing here waits for the device. A part of
// distill_loss.cu, since torch's headers would take longer to compile once more, for each architecture, than all of this.
#pragma once
#include "../multilabel_bind.h"
#include "multilabel_launch.h"

namespace ensdistill::cuda {
namespace {

void check_devices(const MultilabelArguments& m) {
  check_devices(m.shared);
  const std::pair<const char*, const std::optional<Tensor>*> others[] = {
      {"labels", &m.marks}, {"mask", &m.mask}, {"pos_weight", &m.positive_weights}};
  for (const auto& [name, t] : others)
    if (*t) STD_TORCH_CHECK(on_same_device(m.shared.student, **t), name, ": expected on the student's device");
}

MultilabelResult run_multilabel(const MultilabelArguments& m) {
  const LossArguments& a = m.shared;
  check_devices(m);
  const int64_t K = a.members(), N = a.rows(), C = a.classes();
  STD_TORCH_CHECK(K <= kMaxMembers, "targets: expected at most ", kMaxMembers, " members on CUDA, got ", K);
  STD_TORCH_CHECK(C <= kMaxClasses, "student: expected at most ", kMaxClasses, " classes on CUDA, got ", C);
  const OnDevice on(a.student);
  const cudaStream_t stream = on.stream();

  const ScalarType real = a.in_double() ? ScalarType::Double : ScalarType::Float;
  const bool per_row = a.reduction == Reduction::none;
  Tensor gradient = new_gradient(a);
  Tensor loss = torch::stable::new_empty(a.student, per_row ? std::vector<int64_t>{N} : std::vector<int64_t>{}, real);
  if (per_row && N == 0) return {loss, gradient};
  Tensor row_loss = per_row ? loss : torch::stable::new_empty(a.student, std::vector<int64_t>{N}, real);
  const int64_t weights_at = sizeof(Prepared), sums_at = weights_at + K * int64_t(sizeof(double)),
                members_at = sums_at + sums_of(N) * int64_t(sizeof(double));
  Tensor workspace = torch::stable::new_empty(a.student, std::vector<int64_t>{members_at + K * int64_t(sizeof(int))}, ScalarType::Byte);
  auto* const work = static_cast<unsigned char*>(workspace.mutable_data_ptr());
  auto* prepared = reinterpret_cast<Prepared*>(work);

  MultilabelProblem p{};
  static_cast<MultilabelCall&>(p) = multilabel_call_of(m, gradient);
  auto* member_weights = reinterpret_cast<double*>(work + weights_at);
  auto* sums = reinterpret_cast<double*>(work + sums_at);
  auto* members = reinterpret_cast<int*>(work + members_at);
  p.prepared = prepared, p.member = members, p.weight = member_weights;
  p.geometric = a.combiner != Combiner::prob && K > 1;
  p.doubles = a.in_double();
  p.row_loss = row_loss.mutable_data_ptr();
  const int64_t shared_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, on.index());
  STD_TORCH_CHECK(multilabel_shared_bytes(p) <= shared_limit, "student: expected fewer classes beside sparse targets on this device, got ", C);

  fill_zero(prepared, sizeof(Prepared), stream);
  launch_prepare_multilabel(prepared, members, member_weights, a.weights ? a.weights->const_data_ptr<double>() : nullptr, int(K), p, stream);
  if (N > 0) launch_multilabel(p, a.in_double() || a.temperature > kMaxFloatTemperature, stream);
  if (!per_row) {
    if (p.doubles) launch_sum(row_loss.const_data_ptr<double>(), N, p.factor(), sums, loss.mutable_data_ptr<double>(), stream);
    else launch_sum(row_loss.const_data_ptr<float>(), N, p.factor(), sums, loss.mutable_data_ptr<float>(), stream);
  }
  return {loss, gradient};
}

}  // namespace
}  // namespace ensdistill::cuda
