#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_bf16_u8(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<Bf16, uint8_t>(problem, plan, stream); }
}  // namespace ensdistill::cuda
