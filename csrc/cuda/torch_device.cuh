// The device and the stream that torch has current. Nothing here waits for the device.
#pragma once
#include <cuda_runtime.h>

#ifdef ENSDISTILL_SHIM  // the kernels run on the CPU, on its tensors
#include <shim/torch_runtime.h>
#else
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace ensdistill::cuda {

using torch::stable::Tensor;

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
