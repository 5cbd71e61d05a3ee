// Launches and attributes, of CUDA alone: torch's headers would cost every file of kernels seconds of compiling, once for each
// architecture.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace ensdistill::cuda {

void check(cudaError_t error);  // throws, with torch's message

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

#ifndef ENSDISTILL_SHIM
template <class... Parameters>
int registers_of(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel));
  return attributes.numRegs;
}
#else
template <class... Parameters>
int registers_of(void (*)(Parameters...)) {
  return 0;
}
#endif

inline void fill_zero(void* to, size_t bytes, cudaStream_t stream) { check(cudaMemsetAsync(to, 0, bytes, stream)); }

// `cluster` neighbouring blocks run at the same time and see each other's shared memory: 1, or on sm_90 and later up to 16, of
// which `grid.x` is a multiple.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), dim3 grid, unsigned cluster, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     Arguments&&... arguments) {
  constexpr size_t kUnasked = 48 * 1024;    // of shared memory; more a kernel gets only on request
  constexpr unsigned kPortableCluster = 8;  // the same for blocks
  if (shared_bytes > kUnasked) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  if (cluster > kPortableCluster) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  launch_clusters(kernel, grid, 1, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace ensdistill::cuda
