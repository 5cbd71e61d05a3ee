// How a problem's rows are laid over threads. Plain C++: used by the launcher, and by Python to explain a launch.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../host_device.h"

namespace ensdistill::cuda {

// For as many threads the 65536 registers of a multiprocessor suffice: at most 96 for each. Kernels for other divergences, and
// those that read rows again and keep loads in registers, get 128.
constexpr int kThreadsAtOnce = 640, kFewerThreadsAtOnce = 512;
constexpr int kMaxBlockThreads = 512;
constexpr int kSlotBytes = 32;                      // of one partial result
constexpr int kReductionBytes = 66 * kSlotBytes;    // head of a block's shared memory: two sets of 32, and two of a cluster
constexpr int kNumbersBytes = 32, kSumsBytes = 16;  // MemberNumbers<float> and LogSums<float>
constexpr int kMostAtOnce = 8;                      // members that may take more memory so that they meet once
constexpr int kMaxMembers = 1024;
constexpr int kMaxClasses = 1 << 30;  // positions within a row are 32-bit; offsets of rows are 64-bit

enum class Layout : int {
  staged,   // a thread for each row; the block's rows lie in shared memory as they lie in device memory
  strided,  // a thread for each row, reading device memory: neighbouring rows are contiguous
  tile,     // lanes of a warp for each row, which stays in shared memory
  block,    // a block for each row, which stays in shared memory
  cluster,  // several blocks for each row, which stays in their shared memory together
  reread,   // a block for each row, which is read from device memory in each sweep
  doubles,  // the same in double precision, any strides
};

inline const char* name_of(Layout layout) {
  constexpr const char* names[] = {"staged", "strided", "tile", "block", "cluster", "reread", "doubles"};
  return names[int(layout)];
}

// The properties that decide the plan.
struct Shape {
  int64_t rows, classes, members;
  int student_bytes, target_bytes;  // of an element; targets of a sparse row: 0
  bool geometric, doubles, sparse;
  bool keeps_softmax;  // every plan must hold each member's softmax ready
  bool unit_classes;   // classes neighbour in memory, in all matrices
  bool aligned;        // each row, where it is cut into vectors, begins and ends at a boundary of 16 bytes
  bool flat;           // so do rows, from a 16-byte boundary on: a block's rows are one piece
  int64_t entries;     // of a sparse row
  int shared_limit;    // bytes of shared memory that a block may have
  bool clusters;       // the device has them
};

struct Plan {
  Layout layout;
  int threads;  // of a block
  int blocks;   // of a cluster
  int lanes;    // threads of a block that share a row
  int rows_per_block;
  int steps;       // vectors of a row that each thread walks, at most
  int buffers;     // of targets on chip
  bool at_once;    // a buffer for each member, so that all members' sums meet at once; else two in turn, and the mixture's running sum
  int table_size;  // of named classes
  int64_t member_softmax_at, members_at, meeting_at, shelves_at, index_at, shared_bytes;
  double bytes;    // through device memory, predicted
  int* registers;  // where not a launch is wanted, but the number of registers that its kernel takes

  int64_t groups(int64_t rows) const { return (rows + rows_per_block - 1) / rows_per_block; }
};

constexpr int64_t power_of_two_at_least(int64_t x) {
  int64_t p = 1;
  while (p < x) p *= 2;
  return p;
}
constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Of a sparse row's index: a bit for each class, and a word more, for two words are read at once.
ENSDISTILL_HD int64_t named_words(int64_t classes) { return (classes / 32 + 5) / 4 * 4; }

class Planner {
 public:
  explicit Planner(const Shape& shape) : s(shape), vector(shape.doubles ? 1 : 16 / shape.student_bytes) {}

  // All members at once, or two of them in turn. At once a row meets twice instead of once for each member, which saves much where threads
  // meet at barriers; in turn it may take less memory, so that more rows are under way.
  Plan choose() const {
    const Plan in_turn = choose(false), at_once = choose(true);
    const auto is_on_chip = [](const Plan& plan) { return plan.layout == Layout::block || plan.layout == Layout::cluster; };
    const bool fits = at_once.layout == Layout::tile || is_on_chip(at_once);
    return fits && (is_light() || (is_on_chip(in_turn) && s.members <= kMostAtOnce)) ? at_once : in_turn;
  }

  // The first that fits, from the one that moves the fewest bytes.
  Plan choose(bool at_once) const {
    Plan plan;
    const auto fits = [&](const Plan& candidate, int limit) { return plan = candidate, candidate.shared_bytes <= limit; };
    if (s.doubles) return lay(Layout::doubles, 256);
    if (!s.unit_classes) return lay(Layout::strided, s.classes > 4096 ? 32 : 128);
    if (s.flat && !s.sparse && s.classes <= 32)
      for (int threads : {128, 64, 32})
        if (fits(lay(Layout::staged, threads), s.shared_limit / 2)) return plan;
    if (!s.sparse && s.classes <= 1024 && fits(lay(Layout::tile, 128, 1, at_once), s.shared_limit)) return plan;
    // About four vectors a thread keep its loads in flight without leaving threads idle; of 192 threads at 96 registers three
    // blocks fit a multiprocessor. While one block computes, others of
    // its multiprocessor should wait for memory: a row that takes more than a third of it is cut up, if it can be.
    const int threads = int(std::clamp<int64_t>(power_of_two_at_least((vectors() + 3) / 4), 64, 192));
    const int most = s.clusters && !s.sparse ? 8 : 1;
    const auto cut_up = [&](int width, int limit) {
      for (int blocks = 1; blocks <= most; blocks *= 2)
        if (fits(lay(blocks == 1 ? Layout::block : Layout::cluster, width, blocks, at_once), limit)) return true;
      return false;
    };
    for (int share : {3, 2})
      if (cut_up(threads, s.shared_limit / share - 1024)) return plan;  // the system takes a little of each block
    for (int width : {kMaxBlockThreads, 3 * kMaxBlockThreads / 4, kMaxBlockThreads / 2})
      if (cut_up(width, s.shared_limit)) return plan;
    return lay(Layout::reread, kFewerThreadsAtOnce / 2);
  }

  Plan lay(Layout layout, int threads, int blocks = 1, bool at_once = false) const {
    Plan plan{};
    plan.layout = layout, plan.threads = threads, plan.blocks = blocks;
    const bool by_thread = layout == Layout::staged || layout == Layout::strided;
    plan.lanes = by_thread ? 1 : layout == Layout::tile ? int(std::min<int64_t>(32, power_of_two_at_least(vectors()))) : threads;
    plan.rows_per_block = threads / plan.lanes;
    const int64_t walkers = int64_t(plan.lanes) * blocks;
    plan.steps = int(by_thread ? s.classes : (vectors() + walkers - 1) / walkers);

    const bool several = s.members > 1, resident = layout == Layout::tile || layout == Layout::block || layout == Layout::cluster;
    int64_t at = by_thread || layout == Layout::tile ? 0 : kReductionBytes;
    plan.member_softmax_at = -1;
    plan.at_once = at_once && resident && !s.sparse;
    if (plan.at_once) {
      plan.members_at = at;
      at += kNumbersBytes * s.members * plan.rows_per_block;
      plan.meeting_at = at;
      if (layout != Layout::tile) at += kSumsBytes * (1 + s.members) * (threads / 32 + 1);
    } else if (!s.sparse && (!resident || (several && s.keeps_softmax))) {
      plan.member_softmax_at = at;
      at += round_up(2 * (s.doubles ? 8 : 4) * s.members * plan.rows_per_block, 16);
    }
    plan.shelves_at = at;
    plan.buffers = int(s.sparse ? 0 : plan.at_once ? s.members : several ? 2 : 1);
    if (layout == Layout::staged) {
      const auto piece = [&](int size) { return round_up(plan.rows_per_block * s.classes * size, 16); };
      at += piece(s.student_bytes) + s.members * piece(s.target_bytes);
    } else if (resident) {
      const int64_t slots = int64_t(plan.steps) * vector * threads;
      at += slots * (s.student_bytes + plan.buffers * s.target_bytes + (several && !plan.at_once ? 4 : 0));
    }
    at = round_up(at, 16);
    plan.index_at = at;
    if (s.sparse) {
      plan.table_size = int(power_of_two_at_least(2 * s.entries + 4));
      at += 4 * named_words(s.classes) + (4 + (s.doubles ? 8 : 4)) * int64_t(plan.table_size);
    }
    plan.shared_bytes = at;

    const double elements = double(s.rows) * double(s.classes);
    const int reads = resident || layout == Layout::staged ? 1 : 2;
    plan.bytes = elements * (s.student_bytes * (reads + 1) + double(s.members) * s.target_bytes * reads) + double(s.rows) * double(s.entries) * 12;
    return plan;
  }

 private:
  const Shape s;
  const int vector;

  // Whether all members take no more memory than two in turn and their sum in float32.
  bool is_light() const { return s.members * s.target_bytes <= 2 * s.target_bytes + 4; }

  // An unaligned row may begin and end within a vector.
  int64_t vectors() const { return s.aligned ? s.classes / vector : (s.classes + 2 * (vector - 1)) / vector; }
};

}  // namespace ensdistill::cuda
