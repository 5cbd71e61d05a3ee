#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f32_u8(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<float, uint8_t>(problem, plan, stream); }
}  // namespace ensdistill::cuda
