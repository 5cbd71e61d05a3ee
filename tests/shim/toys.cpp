// Small kernels against the stand-in itself: `toys NAME [SEED]`. Right ones print their results; wrong ones must be caught.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ensdistill::cuda {

constexpr unsigned kAll = 0xffffffffu;

struct Setup {
  unsigned blocks = 1, threads = 64, cluster = 1;
  size_t shared_bytes = 256;
};

template <class... P, class... A>
void run(const Setup& s, void (*kernel)(P...), A... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = s.cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = s.blocks, config.blockDim = s.threads, config.dynamicSmemBytes = s.shared_bytes;
  config.attrs = &attribute, config.numAttrs = 1;
  if (const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...)) throw std::runtime_error(cudaGetErrorString(error));
}

void print(const std::vector<float>& x) {
  for (const float f : x) std::printf("%g ", double(f));
  std::printf("\n");
}

// --- right

__global__ void lanes(float* out) {
  const int i = int(threadIdx.x);
  const float x = float(i);
  out[i] = __shfl_xor_sync(kAll, x, 3);
  out[32 + i] = __shfl_sync(kAll, x, 5, 8);
  out[64 + i] = __shfl_up_sync(kAll, x, 2, 16);
  out[96 + i] = __shfl_down_sync(kAll, x, 2, 16);
  // Half a warp each, in branches of their own.
  if (i < 16) out[128 + i] = __shfl_xor_sync(0x0000ffffu, x, 1);
  else out[128 + i] = __shfl_xor_sync(0xffff0000u, x, 2);
  out[160 + i] = float(__popc(__ballot_sync(kAll, i % 3 == 0)));
  out[192 + i] = float(__reduce_max_sync(kAll, i ^ 21));
  out[224 + i] = float(__any_sync(kAll, i == 7) + 2 * __all_sync(kAll, i == 7));
}

// Each block sums its numbers; the last to come, whichever it is, adds up the sums in a fixed order.
__global__ void sum_of_blocks(const float* x, float* partial, unsigned* tickets, float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ bool last;
  auto* slot = reinterpret_cast<float*>(memory);
  slot[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) slot[threadIdx.x] += slot[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = slot[0];
    __threadfence();
    last = atomicAdd(tickets, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x > 0) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];
  *out = sum;
}

// Every block of a cluster adds up the numbers of all of them.
__global__ void across_blocks(float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* word = reinterpret_cast<uint32_t*>(memory);
  word[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
  cluster_barrier();
  unsigned sum = 0;
  for (int b = 0; b < cluster_size(); ++b) sum += word_of_block(word + threadIdx.x, b);
  cluster_barrier();
  out[blockIdx.x * blockDim.x + threadIdx.x] = float(sum + 1000 * cluster_rank());
}

__global__ void copied(const float* x, float* out, bool wait_for_both) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* slot = reinterpret_cast<float*>(memory) + 8 * threadIdx.x;
  for (int i = 0; i < 2; ++i) async_copy<16>(slot + 4 * i, x + 8 * threadIdx.x + 4 * i), async_commit();
  if (wait_for_both) async_wait<0>();
  else async_wait<1>();
  for (int i = 0; i < 8; ++i) out[8 * threadIdx.x + i] = slot[i];
}

// --- wrong

__global__ void never_written(float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float variable[4];
  if (threadIdx.x == 0) {
    out[2 * blockIdx.x] = reinterpret_cast<float*>(memory)[3], out[2 * blockIdx.x + 1] = variable[2];
    for (int i = 0; i < 4; ++i) variable[i] = 7, reinterpret_cast<float*>(memory)[i] = 7;  // the next block must not find it
  }
}
__global__ void exits_before_the_barrier() {
  if (threadIdx.x == 40) return;
  __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
}
__global__ void lane_stays_away(float* out) {
  if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
}
__global__ void lane_left_out(float* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }
__global__ void from_a_lane_left_out(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}
__global__ void barrier_and_shuffle(float* out) {
  if (threadIdx.x < 16) __syncthreads();
  else out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
}
__global__ void different_masks(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
  else out[threadIdx.x] = __shfl_xor_sync(0xffff0000u, 1.0f, 1);
}
__global__ void one_block_leaves() {
  if (blockIdx.x == 1) return;
  cluster_barrier();
}
__global__ void looks_into_a_block_that_left(float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  cluster_barrier();
  if (blockIdx.x == 1) return;
  for (int i = 0; i < 2000; ++i) __syncthreads();  // the other has time to leave
  out[0] = float(word_of_block(reinterpret_cast<uint32_t*>(memory), 1));
}
__global__ void misaligned_load(const float* x, float* out) { *out = __ldg(reinterpret_cast<const float4*>(x + 1)).x; }
__global__ void misaligned_store(float* out) { *reinterpret_cast<float4*>(out + 2) = make_float4(1, 2, 3, 4); }
__global__ void misaligned_copy(const float* x) {
  extern __shared__ __align__(16) unsigned char memory[];
  async_copy<16>(memory, x + 1);
}
__global__ void index_too_large(int i, float* out) {
  float local[4] = {1, 2, 3, 4};
  for (int j = 0; j < i; ++j) local[j] += 1;
  *out = local[i & 3];
}
__global__ void row_offset_in_int(int row, int classes, float* out) { *out = float(row * classes); }
__global__ void writes_behind_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  memory[256 + threadIdx.x] = 1;
}
__global__ void writes_before_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  reinterpret_cast<float*>(memory)[int(threadIdx.x) - 64] = 1;
}
__global__ void reads_behind_shared(float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  *out = memory[256];
}
__global__ void copies_behind_shared(const float* x) {
  extern __shared__ __align__(16) unsigned char memory[];
  async_copy<16>(memory + 256, x);
}
__global__ void reads_behind_global(const float* x, float* out) { *out = x[1024 + threadIdx.x]; }
__global__ void writes_behind_global(float* out) { out[1024 + threadIdx.x] = 1; }
// A barrier is missing between the write and the read.
__global__ void races(float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* slot = reinterpret_cast<float*>(memory);
  slot[threadIdx.x] = float(threadIdx.x);
  if (threadIdx.x == 0) *out = slot[63];
}

// --- number formats, from standard input to standard output

void formats() {
  double x = 0;
  while (std::fread(&x, sizeof x, 1, stdin) == 1) {
    const unsigned short bits[] = {__half_as_ushort(__double2half(x)), __bfloat16_as_ushort(__double2bfloat16(x)),
                                   __half_as_ushort(__float2half_rn(float(x))), __bfloat16_as_ushort(__float2bfloat16_rn(float(x)))};
    std::fwrite(bits, sizeof bits, 1, stdout);
  }
}
void widened() {
  for (unsigned i = 0; i < 65536; ++i) {
    const float x[] = {__half2float(__ushort_as_half(static_cast<unsigned short>(i))),
                       __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(i)))};
    std::fwrite(x, sizeof x, 1, stdout);
  }
}

int main_of(const std::string& name) {
  auto* const x = new float[1024];
  std::vector<float> out(1024, -1);
  for (int i = 0; i < 1024; ++i) x[i] = float(i);
  auto* const o = new float[1024]();
  unsigned tickets = 0;
  size_t show = 0;
  const Setup usual, warp{1, 32}, pair{2, 32, 2};
  const std::map<std::string, void (*)()> plain = {{"formats", formats}, {"widened", widened}};
  if (plain.count(name)) return plain.at(name)(), 0;
  if (name == "lanes") run(warp, lanes, o), show = 256;
  else if (name == "sum_of_blocks") run({16, 64}, sum_of_blocks, x, o + 1, &tickets, o), show = 1;
  else if (name == "across_blocks") run({8, 32, 4}, across_blocks, o), show = 256;
  else if (name == "copied") run({1, 8}, copied, x, o, true), show = 64;
  else if (name == "copied_too_early") run({1, 8}, copied, x, o, false), show = 64;
  else if (name == "never_written") run({2, 32}, never_written, o), show = 4;
  else if (name == "exits_before_the_barrier") run(usual, exits_before_the_barrier);
  else if (name == "two_barriers") run(usual, two_barriers);
  else if (name == "lane_stays_away") run(warp, lane_stays_away, o);
  else if (name == "lane_left_out") run(warp, lane_left_out, o);
  else if (name == "from_a_lane_left_out") run(warp, from_a_lane_left_out, o);
  else if (name == "barrier_and_shuffle") run(warp, barrier_and_shuffle, o);
  else if (name == "different_masks") run(warp, different_masks, o);
  else if (name == "warp_not_full") run({1, 20}, lanes, o);
  else if (name == "one_block_leaves") run(pair, one_block_leaves);
  else if (name == "looks_into_a_block_that_left") run(pair, looks_into_a_block_that_left, o);
  else if (name == "misaligned_load") run(warp, misaligned_load, x, o);
  else if (name == "misaligned_store") run(warp, misaligned_store, o);
  else if (name == "misaligned_copy") run(warp, misaligned_copy, x);
  else if (name == "index_too_large") run(warp, index_too_large, 5, o);
  else if (name == "row_offset_in_int") run(warp, row_offset_in_int, 40000, 128256, o);
  else if (name == "writes_behind_shared") run(usual, writes_behind_shared);
  else if (name == "writes_before_shared") run(usual, writes_before_shared);
  else if (name == "reads_behind_shared") run(usual, reads_behind_shared, o);
  else if (name == "copies_behind_shared") run(usual, copies_behind_shared, x);
  else if (name == "reads_behind_global") run(usual, reads_behind_global, x, o);
  else if (name == "writes_behind_global") run(usual, writes_behind_global, o);
  else if (name == "races") run(usual, races, o), show = 1;
  else if (name == "too_many_threads") run({1, 1056}, lanes, o);
  else if (name == "shared_not_asked_for") run({1, 32, 1, 60000}, lanes, o);
  else if (name == "half_a_cluster") run({3, 32, 2}, across_blocks, o);
  else return std::fprintf(stderr, "no toy is called %s\n", name.c_str()), 1;
  print(std::vector<float>(o, o + show));
  delete[] x, delete[] o;
  return 0;
}

}  // namespace ensdistill::cuda

int main(int count, char** arguments) {
  if (count > 2) shim::set_seed(std::stoull(arguments[2]));
  try {
    return ensdistill::cuda::main_of(count > 1 ? arguments[1] : "");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
}
