#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f32_f16(const Problem& problem, const Plan& plan, cudaStream_t stream) { launch_dense<float, F16>(problem, plan, stream); }
}  // namespace ensdistill::cuda
