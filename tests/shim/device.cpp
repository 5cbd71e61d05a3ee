// The device that isn't there: its attributes, its refusals, and a record of the launches on it.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>

namespace {

constexpr size_t kPlainSharedBytes = 48 * 1024;  // a kernel gets more only by cudaFuncSetAttribute
constexpr unsigned kPortableCluster = 8, kLargestCluster = 16;

std::mutex mutex;
std::map<int, int> attributes = {
    // An H100's.
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxSharedMemoryPerBlock, int(kPlainSharedBytes)},
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMultiProcessorCount, 132},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrL2CacheSize, 50 * 1024 * 1024},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 * 1024},
    {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 * 1024},
    {cudaDevAttrReservedSharedMemoryPerBlock, 1024},
};
struct Permission {
  size_t shared_bytes = kPlainSharedBytes;
  bool large_cluster = false;
};
std::map<const void*, Permission> permissions;
std::string launches;
cudaError_t last_error = cudaSuccess;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "cluster out of resources";
  }
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = attributes.find(attribute);
  if (found == attributes.end()) return note(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}

namespace shim {

// Kernels without external linkage have no name here but their type.
std::string name_of(const void* kernel, const std::type_info& type) {
  Dl_info info{};
  const bool found = dladdr(kernel, &info) && info.dli_saddr == kernel && info.dli_sname;
  char* const readable = abi::__cxa_demangle(found ? info.dli_sname : type.name(), nullptr, nullptr, nullptr);
  const std::string name = readable ? readable : found ? info.dli_sname : type.name();
  std::free(readable);
  return name;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  Permission& permission = permissions[kernel];
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) permission.large_cluster = value != 0;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > attributes.at(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return note(cudaErrorInvalidValue);
  permission.shared_bytes = std::max(size_t(value), kPlainSharedBytes);
  return cudaSuccess;
}

cudaError_t launch(const void* kernel, const char* name, const cudaLaunchConfig_t& config, void (*body)(const void*), const void* argument) {
  Shape shape{config.gridDim, config.blockDim, {1, 1, 1}, config.dynamicSmemBytes};
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& d = config.attrs[i].val.clusterDim;
      shape.cluster = {d.x, d.y, d.z};
    }
  const uint3 &grid = shape.grid, &block = shape.block, &cluster = shape.cluster;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const Permission& permission = permissions[kernel];
    const auto none = [](const uint3& d) { return d.x == 0 || d.y == 0 || d.z == 0; };
    if (none(grid) || none(block) || none(cluster) || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
      return note(cudaErrorInvalidConfiguration);
    if (block.x > 1024 || block.y > 1024 || block.z > 64 || uint64_t(block.x) * block.y * block.z > 1024) return note(cudaErrorInvalidConfiguration);
    if (config.dynamicSmemBytes > permission.shared_bytes) return note(cudaErrorInvalidValue);
    if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) return note(cudaErrorInvalidConfiguration);
    const uint64_t size = uint64_t(cluster.x) * cluster.y * cluster.z;
    if (size > (permission.large_cluster ? kLargestCluster : kPortableCluster)) return note(cudaErrorClusterOutOfResources);
    if (size > 1 && attributes.at(cudaDevAttrComputeCapabilityMajor) < 9) return note(cudaErrorInvalidConfiguration);
    launches += std::string(name) + "\t" + std::to_string(uint64_t(grid.x) * grid.y * grid.z) + "\t" +
                std::to_string(uint64_t(block.x) * block.y * block.z) + "\t" + std::to_string(config.dynamicSmemBytes) + "\t" + std::to_string(size) +
                "\n";
  }
  run(name, shape, body, argument);
  return cudaSuccess;
}

}  // namespace shim

// --- for the tests, through ctypes

extern "C" {

__attribute__((visibility("default"))) void ensdistill_shim_seed(uint64_t seed) { shim::set_seed(seed); }

__attribute__((visibility("default"))) void ensdistill_shim_set_attribute(int attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  attributes[attribute] = value;
}

// One line for each launch since the last call: kernel, blocks, threads of a block, dynamic shared bytes, blocks of a cluster.
__attribute__((visibility("default"))) const char* ensdistill_shim_launches() {
  static std::string taken;
  const std::lock_guard<std::mutex> lock(mutex);
  taken.swap(launches);
  launches.clear();
  return taken.c_str();
}
}
