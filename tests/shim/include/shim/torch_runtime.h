// The parts of torch that csrc/cuda/runtime.cuh uses, for tensors on the CPU.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

namespace ensdistill::cuda {

using torch::stable::Tensor;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  int index() const { return 0; }
  cudaStream_t stream() const { return nullptr; }
};

inline bool on_same_device(const Tensor&, const Tensor&) { return true; }

}  // namespace ensdistill::cuda
