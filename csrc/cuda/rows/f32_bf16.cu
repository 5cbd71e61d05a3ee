#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f32_bf16(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<float, Bf16>(problem, plan, stream); }
}  // namespace ensdistill::cuda
