#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f16_f16(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<F16, F16>(problem, plan, stream); }
void launch_f16_sparse(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_sparse<F16>(problem, plan, stream); }
}  // namespace ensdistill::cuda
