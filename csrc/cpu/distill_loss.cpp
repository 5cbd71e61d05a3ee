// distill_loss on the CPU, from torch's arguments: the checks of values, the outputs' memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../bind.h"
#include "../checks.h"
#include "inputs.h"
#include "run_loss.h"

namespace ensdistill {
namespace {

void check_labels(const LossArguments& a) {
  if (!a.labels) return;
  const int64_t N = a.rows(), C = a.classes();
  const int64_t* label = a.labels->const_data_ptr<int64_t>();
  for (int64_t n = 0; n < N; ++n)
    STD_TORCH_CHECK(label[n] == a.ignore_index || (label[n] >= 0 && label[n] < C), "labels: expected 0..", C - 1, " or ignore_index ", a.ignore_index,
                    ", got ", label[n], " in row ", n);
}

LossResult run(const LossArguments& a) {
  const int64_t N = a.rows();
  const Members members = choose_members(a);
  check_labels(a);
  Tensor gradient = pooled_gradient(a);
  const ScalarType loss_type = a.in_double() ? ScalarType::Double : ScalarType::Float;
  Tensor loss = torch::stable::new_empty(a.student, a.reduction == Reduction::none ? std::vector<int64_t>{N} : std::vector<int64_t>{}, loss_type);
  Tensor statistics = torch::stable::new_empty(a.student, std::vector<int64_t>{a.with_statistics ? N : 0, 4}, loss_type);
  run_loss(call_of(a, gradient), members, a.in_double(), loss.mutable_data_ptr(), a.with_statistics ? statistics.mutable_data_ptr() : nullptr);
  return {loss, gradient, statistics};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) { m.impl("distill_loss", TORCH_BOX(&ensdistill::distill_loss<&ensdistill::run>)); }
