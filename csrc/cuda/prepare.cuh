// The small kernels around the rows': the preparation on the device, and the sum of the rows' losses.
#pragma once
#include <algorithm>

#include "members.cuh"
#include "problem.cuh"
#include "runtime.cuh"

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

// Each block's sum times `factor`, at `to[block]`, in double so that the order hardly matters. It is fixed all the same.
template <class From, class To>
__global__ void __launch_bounds__(512) sum_of(const From* from, int64_t count, double factor, To* to) {
  __shared__ __align__(16) unsigned char slots[kReductionBytes];
  Group<Meeting::block> block(int(blockDim.x), slots);
  double sum = 0;
  for (int64_t n = int64_t(blockIdx.x) * block.size + block.rank; n < count; n += int64_t(gridDim.x) * block.size) sum += from[n];
  sum = block.reduce(sum, 0.0, Add<double>{});
  if (block.rank == 0) to[blockIdx.x] = To(sum * factor);
}

// Of many rows as many blocks' sums first: one block alone reads a hundredth of what the memory can deliver. Their number depends on the
// rows alone, so that every device of a kind returns the same bits.
constexpr int64_t kRowsOfSum = 4096, kMaxSums = 512;
inline int64_t sums_of(int64_t rows) { return std::clamp<int64_t>((rows + kRowsOfSum - 1) / kRowsOfSum, 1, kMaxSums); }

// `sums`: room for sums_of(rows) doubles.
template <class Real>
void launch_sum(const Real* row_loss, int64_t rows, double factor, double* sums, Real* loss, cudaStream_t stream) {
  const dim3 threads(512);
  const int64_t blocks = sums_of(rows);
  if (blocks == 1) return launch(sum_of<Real, Real>, dim3(1), threads, 0, stream, row_loss, rows, factor, loss);
  launch(sum_of<Real, double>, dim3(unsigned(blocks)), threads, 0, stream, row_loss, rows, 1.0, sums);
  launch(sum_of<double, Real>, dim3(1), threads, 0, stream, static_cast<const double*>(sums), blocks, factor, loss);
}

}  // namespace ensdistill::cuda
