#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_bf16_bf16(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<Bf16, Bf16>(problem, plan, stream); }
void launch_bf16_sparse(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_sparse<Bf16>(problem, plan, stream); }
}  // namespace ensdistill::cuda
