// How a problem's rows are laid over threads. Plain C++: the launcher, and whoever wants to explain a launch, ask here.
#pragma once
#include <algorithm>
#include <cstddef>

namespace ensdistill::cuda {

constexpr int kTileThreads = 128;   // a block of tiles; each tile of 1..32 lanes owns a row
constexpr int kTileClasses = 1024;  // wider rows get a block each
constexpr int kMaxBlockThreads = 512;
constexpr int kThreadsAtOnce = 768;   // for as many threads the registers of a multiprocessor suffice: at most 80 for each
constexpr int kReductionBytes = 512;  // head of a block's shared memory: two sets of 32 partial results of up to 8 bytes
constexpr int kMaxMembers = 1024;
constexpr int kMaxClasses = 1 << 30;  // positions within a row are 32-bit; offsets of rows are 64-bit

struct Plan {
  bool tile;      // rows are owned by tiles of a warp, else by blocks
  bool resident;  // the decoded row stays in shared memory, so each logit comes from device memory once; else it is read twice
  int threads;    // of a block
  int lanes;      // threads that share a row
  int steps;      // vectors of a row that each of them walks, at most
  size_t shared_bytes;

  int rows_per_block() const { return threads / lanes; }
};

constexpr int power_of_two_at_least(int x) {
  int p = 1;
  while (p < x) p *= 2;
  return p;
}

// `vector`: elements in the student's 16-byte accesses, 1 in the double-precision plan (which is never resident).
// `shared_limit`: shared memory that a block may ask for. `several`: the mixture needs a running sum beside the last member.
inline Plan choose_plan(int classes, int members, bool several, int vector, int shared_limit) {
  const int vectors = (classes + 2 * (vector - 1)) / vector;  // an unaligned row may begin and end within a vector
  Plan plan{};
  const auto lay = [&](int threads, int lanes) {
    plan.threads = threads, plan.lanes = lanes, plan.steps = (vectors + lanes - 1) / lanes;
    // Student and last member, and the sum of the members before it; each thread keeps its own vectors, as floats.
    plan.shared_bytes = kReductionBytes + sizeof(float) * (several ? 3 : 2) * size_t(plan.steps) * vector * threads;
  };
  plan.tile = classes <= kTileClasses && vector > 1;
  if (plan.tile) {
    lay(kTileThreads, std::min(32, power_of_two_at_least(vectors)));
  } else {
    // About four vectors a thread keep its loads in flight without leaving threads idle.
    const int threads = std::clamp(power_of_two_at_least((vectors + 3) / 4), 128, 256);
    lay(threads, threads);
    // A multiprocessor that has room for one such block only should have more threads in it.
    if (2 * plan.shared_bytes > size_t(shared_limit)) lay(kMaxBlockThreads, kMaxBlockThreads);
  }
  plan.resident = vector > 1 && plan.shared_bytes <= size_t(shared_limit);
  // Re-reading needs each member's maximum and log-sum at hand.
  if (!plan.resident) plan.shared_bytes = kReductionBytes + 2 * sizeof(double) * size_t(members);
  return plan;
}

}  // namespace ensdistill::cuda
