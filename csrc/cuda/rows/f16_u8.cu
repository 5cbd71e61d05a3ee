#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f16_u8(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<F16, uint8_t>(problem, plan, stream); }
}  // namespace ensdistill::cuda
