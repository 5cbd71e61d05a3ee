// The host's side of CUDA: the device and stream that torch has current, and launches. Nothing here waits for the device.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#ifdef ENSDISTILL_SHIM  // the kernels run on the CPU, on its tensors
#include <shim/torch_runtime.h>
#else
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace ensdistill::cuda {

using torch::stable::Tensor;

inline void check(cudaError_t error) { STD_CUDA_CHECK(error); }

// Makes a tensor's device the current one for as long as this lives, with torch's current stream there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline bool on_same_device(const Tensor& a, const Tensor& b) { return a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index(); }

}  // namespace ensdistill::cuda
#endif

namespace ensdistill::cuda {

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
