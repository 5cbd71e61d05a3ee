// The two small kernels around the rows': the preparation on the device, and the sum of the rows' losses.
#pragma once
#include "members.cuh"
#include "problem.cuh"

namespace ensdistill::cuda {

// Counts labelled rows (whole numbers, so the order of the additions doesn't matter) and normalises the weights. `out` comes zeroed.
__global__ void __launch_bounds__(256) prepare(Prepared* out, int* member, double* weight, const double* weights, int members, const LossCall call) {
  __shared__ __align__(16) unsigned char slots[kReductionBytes];
  Group<Meeting::block> block(int(blockDim.x), slots);
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (call.labels && call.reduction == Reduction::mean) {
    int64_t labelled = 0;
    for (int64_t n = thread; n < call.rows; n += int64_t(gridDim.x) * blockDim.x) labelled += call.labelled(n);
    labelled = block.reduce(labelled, int64_t(0), Add<int64_t>{});
    if (block.rank == 0 && labelled > 0) atomicAdd(&out->labelled, static_cast<unsigned long long>(labelled));
  }
  if (blockIdx.x > 0) return;
  double classes = double(call.classes);
  if (call.class_weights) {
    classes = 0;
    for (int64_t c = thread; c < call.classes; c += blockDim.x) classes += call.class_weights[c];
    classes = block.reduce(classes, 0.0, Add<double>{});
  }
  if (thread != 0) return;
  out->class_weight_sum = classes;
  bool valid;
  out->members_used = use_members(weights, members, member, weight, &valid);
  out->valid = valid;
}

// One block, so that the order is fixed; in double, so that it hardly matters.
template <class Real>
__global__ void __launch_bounds__(512) reduce_rows(const Problem p, Real* loss) {
  __shared__ __align__(16) unsigned char slots[kReductionBytes];
  Group<Meeting::block> block(int(blockDim.x), slots);
  double sum = 0;
  for (int64_t n = block.rank; n < p.rows; n += block.size) sum += static_cast<const Real*>(p.row_loss)[n];
  sum = block.reduce(sum, 0.0, Add<double>{});
  if (block.rank == 0) *loss = Real(sum * p.factor);
}

}  // namespace ensdistill::cuda
