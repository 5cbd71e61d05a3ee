#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_bf16_f32(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<Bf16, float>(problem, plan, stream); }
}  // namespace ensdistill::cuda
