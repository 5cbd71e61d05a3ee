// The CUDA ops, their kernels and launchers, compiled for the host and registered for tensors on the CPU. Their signatures are
// those of csrc/schema.cpp, which cuda_shim_helpers.py passes on.
#include <stdexcept>
#include <string>

#include "../../csrc/cuda/distill_loss.cu"
#include "../../csrc/cuda/encode.cu"

namespace ensdistill::cuda {
void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}
void scale_gradient(Tensor gradient, Tensor factor);
}

STABLE_TORCH_LIBRARY_IMPL(ensdistill_shim, CPU, m) {
  m.impl("distill_loss", TORCH_BOX(&ensdistill::distill_loss<&ensdistill::cuda::run_loss>));
  m.impl("multilabel_loss", TORCH_BOX(&ensdistill::multilabel_loss<&ensdistill::cuda::run_multilabel>));
  m.impl("scale_gradient", TORCH_BOX(&ensdistill::cuda::scale_gradient));
  m.impl("encode_uint8", TORCH_BOX(&ensdistill::cuda::encode_uint8));
  m.impl("encode_top_k", TORCH_BOX(&ensdistill::cuda::encode_top_k));
  m.impl("encode_counts", TORCH_BOX(&ensdistill::cuda::encode_counts));
}
