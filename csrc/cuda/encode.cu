// The encoders on CUDA: checks, scratch memory, launches on torch's current stream. Nothing here waits for the device.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <utility>

#include "../encode_bind.h"
#include "encode.cuh"
#include "runtime.cuh"
#include "torch_device.cuh"

namespace ensdistill::cuda {

namespace {

constexpr int64_t kMostScratch = int64_t(1) << 28;  // bytes of device memory, however many rows there are

void check_classes(const char* name, int64_t classes) {
  STD_TORCH_CHECK(classes <= kMaxClasses, name, ": expected at most ", kMaxClasses, " classes on CUDA, got ", classes);
}

void check_devices(const Tensor& targets, std::initializer_list<std::pair<const char*, const std::optional<Tensor>*>> others) {
  for (const auto& [name, t] : others)
    if (*t) STD_TORCH_CHECK(on_same_device(targets, **t), name, ": expected on the targets' device, cuda:", targets.get_device_index());
}

// At least four classes for each thread, where there are as many.
dim3 threads_for(int64_t classes) { return dim3(unsigned(std::clamp<int64_t>(power_of_two_at_least((classes + 3) / 4), 32, kEncodeThreads))); }

dim3 blocks_for(int64_t rows) { return dim3(unsigned(std::min<int64_t>(rows, 0x7fffffff))); }

// The blocks' working memory. Shared memory as long as a multiprocessor can have two such blocks.
class Room {
 public:
  explicit Room(int device) : device_(device), limit_(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) / 2 - 1024) {}

  Scratch take(int64_t bytes) {
    int64_t& used = shared_ + bytes <= limit_ ? shared_ : device_bytes_;
    const Scratch place{used, &used == &shared_};
    used += round_up(bytes, 16);
    return place;
  }

  template <class Call>
  void launch_rows(void (*kernel)(Call), Call call, const EnsembleArguments& a, cudaStream_t stream) const {
    dim3 blocks = blocks_for(call.rows);
    std::optional<Tensor> memory;
    if (device_bytes_ > 0) {
      const int64_t resident = 3 * int64_t(device_attribute(cudaDevAttrMultiProcessorCount, device_));
      blocks.x = unsigned(std::clamp<int64_t>(kMostScratch / device_bytes_, 1, std::min<int64_t>(blocks.x, resident)));
      memory = torch::stable::new_empty(a.targets, {blocks.x * device_bytes_}, ScalarType::Byte);
      call.device_memory = memory->mutable_data_ptr<uint8_t>(), call.device_bytes = device_bytes_;
    }
    launch(kernel, blocks, threads_for(a.classes()), size_t(shared_), stream, call);
  }

 private:
  int device_;
  int64_t limit_, shared_ = round_up(sizeof(EncodeMemory), 16), device_bytes_ = 0;
};

void fill(EnsembleCall& call, const EnsembleArguments& a, const StoredLogits& logits, Room& room) {
  call.logits = logits, call.weights = a.weight(), call.members = int(a.members()), call.rows = a.rows();
  call.temperature = a.temperature, call.geometric = a.geometric();
  call.member_table = room.take(a.members() * kMemberBytes);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_uint8(Tensor logits) {
  CodesCall call{};
  call.logits = stored_logits("logits", logits, false);
  check_classes("logits", call.logits.classes);
  const OnDevice on(logits);
  auto [codes, scale, offset, kl] = CodesResult(logits);
  call.members = logits.size(0), call.rows = logits.size(1);
  if (call.rows > 0) {
    call.codes = codes.mutable_data_ptr<uint8_t>();
    call.scale = scale.mutable_data_ptr<float>(), call.offset = offset.mutable_data_ptr<float>();
    call.kl = kl.mutable_data_ptr<double>();
    launch(encode_uint8_rows, blocks_for(call.members * call.rows), threads_for(call.logits.classes), 0, on.stream(), call);
  }
  return {codes, scale, offset, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_k(Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                                        std::optional<Tensor> weights, double temperature, std::string combiner, int64_t k) {
  const EnsembleArguments arguments{targets, scale, offset, weights, temperature, value_of<Combiner>(combiner)};
  const StoredLogits logits = checked_logits(arguments);
  check_k(arguments, k);
  check_classes("targets", logits.classes);
  check_devices(targets, {{"scale", &scale}, {"offset", &offset}, {"weights", &weights}});
  const OnDevice on(targets);
  auto [ids, log_probs, tail, kl] = TopKResult(arguments, k);
  if (arguments.rows() > 0) {
    TopKCall call{};
    Room room(on.index());
    fill(call, arguments, logits, room);
    call.k = int(k), call.places = int(power_of_two_at_least(k));
    // The sort goes over its places much more often than all else goes over the row: it comes first.
    call.chosen = room.take(call.places * int64_t(sizeof(uint64_t) + sizeof(int)));
    call.keys = room.take(logits.classes * int64_t(sizeof(uint64_t)));
    call.ids = ids_in(ids), call.log_probs = log_probs.mutable_data_ptr<float>();
    call.tail = tail.mutable_data_ptr<float>(), call.kl = kl.mutable_data_ptr<double>();
    room.launch_rows(encode_top_k_rows, call, arguments, on.stream());
  }
  return {ids, log_probs, tail, kl};
}

std::tuple<Tensor, Tensor, Tensor> encode_counts(Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                                 std::optional<Tensor> weights, double temperature, std::string combiner, int64_t draws, int64_t seed,
                                                 std::optional<Tensor> row_ids) {
  const EnsembleArguments arguments{targets, scale, offset, weights, temperature, value_of<Combiner>(combiner)};
  const StoredLogits logits = checked_logits(arguments);
  check_draws(arguments, draws, row_ids);
  check_classes("targets", logits.classes);
  check_devices(targets, {{"scale", &scale}, {"offset", &offset}, {"weights", &weights}, {"row_ids", &row_ids}});
  const OnDevice on(targets);
  const int64_t entries = std::min(draws, logits.classes);
  auto [ids, counts, kl] = CountsResult(arguments, entries);
  if (arguments.rows() > 0) {
    CountsCall call{};
    Room room(on.index());
    fill(call, arguments, logits, room);
    call.draws = draws, call.entries = entries, call.seed = uint64_t(seed);
    call.row_ids = row_ids ? row_ids->const_data_ptr<int64_t>() : nullptr;
    call.below = room.take(logits.classes * int64_t(sizeof(int64_t)));
    call.times = room.take(logits.classes * int64_t(sizeof(int)));
    call.ids = ids_in(ids), call.counts = counts.mutable_data_ptr<int32_t>(), call.kl = kl.mutable_data_ptr<double>();
    room.launch_rows(encode_counts_rows, call, arguments, on.stream());
  }
  return {ids, counts, kl};
}

}  // namespace
}  // namespace ensdistill::cuda

#ifndef ENSDISTILL_SHIM
STABLE_TORCH_LIBRARY_IMPL(ensdistill, CUDA, m) {
  m.impl("encode_uint8", TORCH_BOX(&ensdistill::cuda::encode_uint8));
  m.impl("encode_top_k", TORCH_BOX(&ensdistill::cuda::encode_top_k));
  m.impl("encode_counts", TORCH_BOX(&ensdistill::cuda::encode_counts));
}
#endif
