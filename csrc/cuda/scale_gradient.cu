// gradient *= factor, in place, without anybody waiting to see whether it is 1.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../bind.h"
#include "memory.cuh"
#include "runtime.cuh"
#include "torch_device.cuh"

namespace ensdistill::cuda {

constexpr int kScaleThreads = 256;

// 16 bytes a thread and turn; the rest one by one.
template <class T>
__global__ void __launch_bounds__(kScaleThreads) scale_in_place(T* gradient, const float* factor, int64_t size, int64_t whole) {
  const float f = *factor;
  if (f == 1) return;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int V = 16 / int(sizeof(T));
    for (int64_t v = thread; v < whole; v += threads) {
      auto* at = reinterpret_cast<unsigned char*>(gradient + v * V);
      Packed<T, V> packed;
      packed.get(at);
      float x[V];
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = packed.at(j) * f;
      Packed<T, V>::encode(x).put(at);
    }
    for (int64_t i = whole * V + thread; i < size; i += threads) put_number(gradient + i, Elements<T>::float_of(gradient[i]) * f);
  } else {
    for (int64_t i = thread; i < size; i += threads) gradient[i] *= double(f);
  }
}

template <class T>
void launch_scale(void* gradient, const float* factor, int64_t size, cudaStream_t stream) {
  const int64_t whole = reinterpret_cast<uintptr_t>(gradient) % 16 == 0 ? size * int64_t(sizeof(T)) / 16 : 0;
  const int64_t blocks = std::clamp<int64_t>((size * int64_t(sizeof(T)) / 16 + kScaleThreads - 1) / kScaleThreads, 1, 4096);
  launch(scale_in_place<T>, dim3(unsigned(blocks)), dim3(kScaleThreads), 0, stream, static_cast<T*>(gradient), factor, size, whole);
}

// In any order of its dimensions: each has its place in memory where the smaller ones end.
inline bool fills_its_memory(const Tensor& t) {
  int64_t filled = 1;
  for (bool more = true; more;) {
    more = false;
    for (int64_t d = 0; d < t.dim(); ++d)
      if (t.size(d) > 1 && t.stride(d) == filled) filled *= t.size(d), more = true;
  }
  return filled == t.numel();
}

void scale_gradient(Tensor gradient, Tensor factor) {
  STD_TORCH_CHECK(factor.numel() == 1 && factor.scalar_type() == ScalarType::Float && on_same_device(gradient, factor),
                  "factor: expected one float32 number on the gradient's device");
  const ScalarType type = gradient.scalar_type();
  STD_TORCH_CHECK(is_logits_type(type), "gradient: expected float64, float32, bfloat16 or float16");
  const int64_t size = gradient.numel();
  if (size == 0) return;
  STD_TORCH_CHECK(fills_its_memory(gradient), "gradient: expected dense memory");
  const OnDevice on(gradient);
  void* const data = gradient.mutable_data_ptr();
  const float* const f = factor.const_data_ptr<float>();
  switch (element_of(type)) {
    case Element::f64: return launch_scale<double>(data, f, size, on.stream());
    case Element::f32: return launch_scale<float>(data, f, size, on.stream());
    case Element::bf16: return launch_scale<Bf16>(data, f, size, on.stream());
    default: return launch_scale<F16>(data, f, size, on.stream());
  }
}

}  // namespace ensdistill::cuda

#ifndef ENSDISTILL_SHIM
STABLE_TORCH_LIBRARY_IMPL(ensdistill, CUDA, m) { m.impl("scale_gradient", TORCH_BOX(&ensdistill::cuda::scale_gradient)); }
#endif
