// The CUDA op, its kernels and their launcher, compiled for the host and registered for tensors on the CPU. Its signature is
// that of csrc/schema.cpp, which cuda_shim_helpers.py passes on.
#include "../../csrc/cuda/distill_loss.cu"

STABLE_TORCH_LIBRARY_IMPL(ensdistill_shim, CPU, m) { m.impl("distill_loss", TORCH_BOX(&ensdistill::cuda::distill_loss)); }
