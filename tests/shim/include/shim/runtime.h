// The part of CUDA's runtime library that the launchers use. Launches that a device refuses are refused here too.
#pragma once
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <typeinfo>

#include "engine.h"
#include "vectors.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorClusterOutOfResources = 912,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxRegistersPerMultiprocessor = 82,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4, cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream);

namespace shim {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
// Checks a launch as a device would, notes it, and runs it.
cudaError_t launch(const void* kernel, const char* name, const cudaLaunchConfig_t& config, void (*body)(const void*), const void* argument);
std::string name_of(const void* kernel, const std::type_info& type);

template <class... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<P...> arguments;

  static void run(const void* call) {
    const auto& self = *static_cast<const Call*>(call);
    std::apply(self.kernel, self.arguments);
  }
};

}  // namespace shim

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return shim::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const shim::Call<P...> call{kernel, std::tuple<P...>(static_cast<A&&>(arguments)...)};
  const auto* address = reinterpret_cast<const void*>(kernel);
  return shim::launch(address, shim::name_of(address, typeid(kernel)).c_str(), *config, shim::Call<P...>::run, &call);
}
