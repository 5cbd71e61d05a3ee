// Blocks run one after the other (those of a cluster together); the threads of a block are fibres, which hand over where they
// wait for each other. The next fibre is drawn at random, so a result that hangs on an order shows.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"
#include "shared.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

struct Block;
struct Thread;

struct Copy {
  void* to;
  std::vector<unsigned char> bytes;
};

enum class For { nobody, lanes, block, cluster };

struct Wait {
  For who = For::nobody;
  const char* name = nullptr;
  Place place{};
  unsigned mask = 0;  // of lanes
  int bytes = 0;      // of the values that they exchange

  bool same(const Wait& other) const {
    return who == other.who && mask == other.mask && bytes == other.bytes && (name == other.name || !std::strcmp(name, other.name));
  }
};

struct Warp {
  Thread* lane[32] = {};  // null: a warp that isn't full
};

struct Thread {
  uint3 index;
  int rank, lane;
  Block* block;
  Warp* warp;
  Fibre fibre;
  bool exited = false, arrived_at_cluster = false;
  Wait wait;
  uint64_t value, answer;
  int source;
  std::vector<Copy> open;                    // not committed yet
  std::vector<std::vector<Copy>> committed;  // the oldest first
};

struct Block {
  uint3 index;
  unsigned rank;  // in the cluster
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;
  SharedMemory::Image shared;  // while another block of the cluster runs
  int at_barrier = 0, votes = 0, verdict = 0, alive = 0;
  Wait barrier;  // of the first thread that came
};

namespace {

struct Group {  // blocks that run at the same time: a cluster, or a single block
  std::vector<Block> blocks;
  int at_cluster_barrier = 0;
};

struct Engine {
  std::mutex mutex;
  Stacks stacks;
  Fibre host;
  SharedMemory shared;
  Thread* running = nullptr;
  Group group;
  const char* kernel = nullptr;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  std::string failure;
  uint64_t state = 1;

  uint64_t random(uint64_t below) {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (state * 2685821657736338717ull >> 33) % below;
  }
};
Engine engine;

Thread& self() { return *engine.running; }

std::string text(const uint3& i) { return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")"; }

std::string who(const Thread& t) { return "block " + text(t.block->index) + ", thread " + text(t.index); }

std::string state_of(const Thread& t) {
  if (t.exited) return "has exited";
  if (t.wait.who == For::nobody) return "runs";
  std::string s = std::string("waits at ") + t.wait.name;
  if (t.wait.who == For::lanes) {
    char mask[32];
    std::snprintf(mask, sizeof mask, " with mask 0x%08x", t.wait.mask);
    s += mask;
  }
  return s + " (" + t.wait.place.file + ":" + std::to_string(t.wait.place.line) + ")";
}

bool waits_for(const Thread& t, const Thread& other) {
  if (t.exited || &t == &other || (!other.exited && t.wait.same(other.wait))) return false;
  if (t.wait.who == For::lanes) return t.warp == other.warp && t.wait.mask >> other.lane & 1;
  return t.wait.who == For::cluster || t.block == other.block;
}

// No thread can go on, and some have not come to their end.
std::string deadlock() {
  for (const Block& block : engine.group.blocks)
    for (const Thread& t : block.threads) {
      for (const Block& other_block : engine.group.blocks)
        for (const Thread& other : other_block.threads)
          if (waits_for(t, other)) return who(t) + ": divergent barrier: it " + state_of(t) + ", and " + who(other) + " " + state_of(other);
      if (!t.exited && t.wait.who == For::lanes && !t.warp->lane[31])
        return who(t) + ": divergent barrier: it " + state_of(t) + ", and its warp has fewer lanes";
    }
  return "divergent barrier: no thread can go on";
}

// A thread that can go on, drawn at random; of the same block as long as there are, or nearly so, since clusters pay for changes.
Thread* draw(Block* present) {
  std::vector<Block>& blocks = engine.group.blocks;
  if (!present || present->ready.empty() || (blocks.size() > 1 && engine.random(4096) == 0)) {
    const size_t from = engine.random(blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
      present = &blocks[(from + i) % blocks.size()];
      if (!present->ready.empty()) break;
    }
  }
  std::vector<Thread*>& ready = present->ready;
  if (ready.empty()) return nullptr;
  const size_t i = engine.random(ready.size());
  Thread* const drawn = ready[i];
  ready[i] = ready.back();
  ready.pop_back();
  return drawn;
}

void make_running(Thread& t) {
  Block* const before = engine.running ? engine.running->block : nullptr;
  if (engine.group.blocks.size() > 1 && before != t.block) {
    if (before) before->shared = engine.shared.save();
    engine.shared.load(t.block->shared);
  }
  engine.running = &t;
  threadIdx = t.index, blockIdx = t.block->index;
}

// Goes on with a thread that can; with the host if none can.
void next() {
  Thread& t = self();
  Thread* const to = draw(t.block);
  if (to == &t) return;
  if (!to) return hand_over(t.fibre, engine.host);
  make_running(*to);
  hand_over(t.fibre, to->fibre);
}

void release(Thread& t) {
  t.wait = {};
  t.block->ready.push_back(&t);
}

void enter() {
  arrived();
  engine.body(engine.argument);
  Thread& t = self();
  t.exited = true;
  Block& block = *t.block;
  if (--block.alive == 0 && engine.shared.damaged()) fail("out of bounds: somebody in the block wrote beside its dynamic shared memory");
  next();
  std::abort();  // an exited thread isn't among those that can go on
}

// Notes that the lane has come. True: it is the last of its mask, and all have come to the same.
bool complete(const char* name, unsigned mask, int bytes, Place place) {
  Thread& t = self();
  if (!(mask >> t.lane & 1)) fail("%s (%s:%d) with mask 0x%08x, which leaves out its own lane %d", name, place.file, place.line, mask, t.lane);
  t.wait = {For::lanes, name, place, mask, bytes};
  for (int i = 0; i < 32; ++i) {
    const Thread* other = t.warp->lane[i];
    if (mask >> i & 1 && !(other && other->wait.same(t.wait))) return false;
  }
  return true;
}

void release_lanes(Warp& warp, unsigned mask) {
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) release(*warp.lane[i]);
}

void release_block(Block& block) {
  block.at_barrier = 0;
  for (Thread& t : block.threads) release(t);
}

void lay_out(const Shape& shape, const uint3& first) {
  Group& group = engine.group;
  const unsigned size = shape.cluster.x * shape.cluster.y * shape.cluster.z, threads = shape.block.x * shape.block.y * shape.block.z;
  group.blocks.clear();
  group.at_cluster_barrier = 0;
  group.blocks.resize(size);
  engine.shared.poison();
  const SharedMemory::Image poisoned = size > 1 ? engine.shared.save() : SharedMemory::Image();
  for (unsigned rank = 0; rank < size; ++rank) {
    Block& block = group.blocks[rank];
    block.rank = rank;
    block.index = {first.x + rank % shape.cluster.x, first.y + rank / shape.cluster.x % shape.cluster.y,
                   first.z + rank / shape.cluster.x / shape.cluster.y};
    block.alive = int(threads);
    if (size > 1) block.shared = poisoned;
    block.threads.resize(threads);
    block.warps.resize((threads + 31) / 32);
    for (unsigned i = 0; i < threads; ++i) {
      Thread& t = block.threads[i];
      t.index = {i % shape.block.x, i / shape.block.x % shape.block.y, i / shape.block.x / shape.block.y};
      t.rank = int(i), t.lane = int(i % 32), t.block = &block, t.warp = &block.warps[i / 32];
      t.warp->lane[t.lane] = &t;
      engine.stacks.prepare(t.fibre, size_t(rank) * threads + i, enter);
      block.ready.push_back(&t);
    }
  }
}

void run_group() {
  adopt_current(engine.host);
  Thread* const first = draw(nullptr);
  make_running(*first);
  hand_over(engine.host, first->fibre);
  engine.running = nullptr;
  if (engine.failure.empty())
    for (const Block& block : engine.group.blocks)
      if (block.alive) engine.failure = deadlock();
}

}  // namespace

bool in_kernel() { return engine.running != nullptr; }

// The fibre is left where it is: nothing of a kernel needs to be undone, and no exception has to find its way through code that
// was compiled for none.
void fail(const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (!in_kernel()) {
    std::fprintf(stderr, "outside of a kernel: %s\n", message);
    std::abort();
  }
  engine.failure = who(self()) + ": " + message;
  hand_over(self().fibre, engine.host);
  std::abort();
}

void check_aligned(const void* address, size_t alignment, const char* what, Place place) {
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fail("misaligned access: %s of %zu bytes at %p (%s:%d)", what, alignment, address, place.file, place.line);
}

void copy_async(void* to, const void* from, size_t bytes, Place place) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("an asynchronous copy of %zu bytes (%s:%d); 4, 8 or 16 there are", bytes, place.file, place.line);
  check_aligned(to, bytes, "an asynchronous copy's destination", place);
  check_aligned(from, bytes, "an asynchronous copy's source", place);
  if (!engine.shared.holds(to, bytes)) fail("out of bounds: an asynchronous copy to what isn't shared memory (%s:%d)", place.file, place.line);
  Copy copy{to, std::vector<unsigned char>(bytes)};
  std::memcpy(copy.bytes.data(), from, bytes);
  std::memset(to, SharedMemory::kPoison, bytes);
  self().open.push_back(std::move(copy));
}

void commit_copies() {
  self().committed.push_back(std::move(self().open));
  self().open.clear();
}

void wait_for_copies(size_t but) {
  std::vector<std::vector<Copy>>& groups = self().committed;
  const size_t done = groups.size() > but ? groups.size() - but : 0;
  for (size_t i = 0; i < done; ++i)
    for (const Copy& copy : groups[i]) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
  groups.erase(groups.begin(), groups.begin() + std::ptrdiff_t(done));
}

int lane() { return self().lane; }

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int bytes, int operand, int width, Place place) {
  static const char* const names[] = {"__shfl_xor_sync", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync"};
  const char* name = names[int(kind)];
  Thread& t = self();
  if (width <= 0 || width > 32 || width & (width - 1)) fail("%s with width %d (%s:%d)", name, width, place.file, place.line);
  const int begin = t.lane & ~(width - 1), end = begin + width;
  int source = t.lane;
  switch (kind) {
    case Shuffle::by_xor: source = t.lane ^ operand; break;
    case Shuffle::from: source = begin | (operand & (width - 1)); break;
    case Shuffle::up: source = t.lane - operand; break;
    case Shuffle::down: source = t.lane + operand; break;
  }
  // Out of the segment: the lane's own. (A xor may look into the segments before its own.)
  if (source >= end || source < (kind == Shuffle::by_xor ? 0 : begin)) source = t.lane;
  if (!(mask >> source & 1)) fail("%s (%s:%d) from lane %d, which mask 0x%08x leaves out", name, place.file, place.line, source, mask);
  t.value = value, t.source = source;
  if (complete(name, mask, bytes, place)) {
    for (Thread* other : t.warp->lane)
      if (other && mask >> other->lane & 1) other->answer = t.warp->lane[other->source]->value;
    release_lanes(*t.warp, mask);
  }
  next();
  return t.answer;
}

uint64_t reduce(const char* name, unsigned mask, uint64_t value, Combine combine, Place place) {
  Thread& t = self();
  t.value = value;
  if (complete(name, mask, 0, place)) {
    uint64_t all = 0;
    bool first = true;
    for (const Thread* other : t.warp->lane)
      if (other && mask >> other->lane & 1) all = first ? other->value : combine(all, other->value), first = false;
    for (Thread* other : t.warp->lane)
      if (other && mask >> other->lane & 1) other->answer = all;
    release_lanes(*t.warp, mask);
  }
  next();
  return t.answer;
}

int barrier(bool predicate, const char* name, Place place) {
  Thread& t = self();
  Block& block = *t.block;
  t.wait = {For::block, name, place, 0, 0};
  // Different barriers that meet are a mistake even where the hardware lets it pass.
  if (block.at_barrier == 0) block.barrier = t.wait;
  const Wait& first = block.barrier;
  if (!first.same(t.wait) || first.place.line != place.line || std::strcmp(first.place.file, place.file))
    fail("divergent barrier: it %s, and others wait at %s (%s:%d)", state_of(t).c_str(), first.name, first.place.file, first.place.line);
  block.votes += predicate;
  if (++block.at_barrier == int(block.threads.size())) {
    block.verdict = block.votes, block.votes = 0;
    release_block(block);
  }
  next();
  return block.verdict;
}

void cluster_arrive(Place place) {
  Thread& t = self();
  if (t.arrived_at_cluster) fail("a second arrival at the cluster's barrier without a wait (%s:%d)", place.file, place.line);
  t.arrived_at_cluster = true;
  std::vector<Block>& blocks = engine.group.blocks;
  if (++engine.group.at_cluster_barrier < int(blocks.size() * blocks.front().threads.size())) return;
  engine.group.at_cluster_barrier = 0;
  for (Block& block : blocks)
    for (Thread& other : block.threads) {
      other.arrived_at_cluster = false;
      if (other.wait.who == For::cluster) release(other);
    }
}

void cluster_wait(Place place) {
  Thread& t = self();
  if (!t.arrived_at_cluster) return;  // the last one has come already
  t.wait = {For::cluster, "the cluster's barrier", place, 0, 0};
  next();
}

unsigned cluster_rank() { return self().block->rank; }
unsigned cluster_size() { return unsigned(engine.group.blocks.size()); }

void read_shared(void* to, const void* address, size_t bytes, unsigned rank, Place place) {
  const std::vector<Block>& blocks = engine.group.blocks;
  if (!engine.shared.holds(address, bytes))
    fail("out of bounds: %p isn't shared memory, here or in another block (%s:%d)", address, place.file, place.line);
  if (rank >= blocks.size()) fail("out of bounds: block %u of a cluster of %zu (%s:%d)", rank, blocks.size(), place.file, place.line);
  if (!blocks[rank].alive) fail("shared memory of block %u of the cluster, which has exited already (%s:%d)", rank, place.file, place.line);
  const bool own = &blocks[rank] == self().block;
  std::memcpy(to, own ? address : blocks[rank].shared.data() + engine.shared.offset(address), bytes);
}

void run(const char* kernel, const Shape& shape, void (*body)(const void*), const void* argument) {
  const std::lock_guard<std::mutex> lock(engine.mutex);
  const uint3 clusters = {shape.grid.x / shape.cluster.x, shape.grid.y / shape.cluster.y, shape.grid.z / shape.cluster.z};
  std::vector<uint64_t> order(uint64_t(clusters.x) * clusters.y * clusters.z);
  for (uint64_t i = 0; i < order.size(); ++i) {
    const uint64_t j = engine.random(i + 1);
    order[i] = order[j], order[j] = i;
  }
  engine.kernel = kernel, engine.body = body, engine.argument = argument, engine.failure.clear();
  engine.stacks.reserve(size_t(shape.cluster.x) * shape.cluster.y * shape.cluster.z * shape.block.x * shape.block.y * shape.block.z);
  engine.shared.open(shape.shared_bytes);
  blockDim = shape.block, gridDim = shape.grid;
  for (size_t i = 0; i < order.size() && engine.failure.empty(); ++i) {
    const uint64_t n = order[i];
    lay_out(shape, {unsigned(n % clusters.x) * shape.cluster.x, unsigned(n / clusters.x % clusters.y) * shape.cluster.y,
                    unsigned(n / clusters.x / clusters.y) * shape.cluster.z});
    run_group();
  }
  engine.shared.close();
  if (!engine.failure.empty()) throw std::runtime_error(std::string("kernel ") + kernel + ", " + engine.failure);
}

void set_seed(uint64_t seed) { engine.state = seed * 0x9e3779b97f4a7c15ull + 1; }

}  // namespace shim
