#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f32_f32(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<float, float>(problem, plan, stream); }
void launch_f32_sparse(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_sparse<float>(problem, plan, stream); }
}  // namespace ensdistill::cuda
