// A call of the loss as the CPU's kernels see it, and how its rows are laid over vectors and threads.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../multilabel.h"
#include "../problem.h"

namespace ensdistill {

struct Problem : LossCall {
  const int64_t* members;  // [members_used] those with a weight above zero
  const double* weights;   // [members_used] normalised to sum to one
  int64_t members_used;
  bool geometric;  // average logits (equal to averaging log-probabilities, once normalised), not probabilities

  const float* smoothed_classes;  // [padded C] class weights as floats, zeros behind; null where nothing needs them
  double class_weight_sum;
  double gradient_factor;  // 1, or 1 / N, or 1 / divisor
  double label_share;      // the factor of a labelled row's cross entropy
  bool some_unlabelled;    // labels have a share, but not in every row
  double* row_loss;        // [N]
  double* statistics;      // [N, 4], or null
};

struct MultilabelProblem : MultilabelCall {
  const int64_t* members;  // [members_used] those with a weight above zero
  const double* weights;   // [members_used] normalised to sum to one
  int64_t members_used;
  bool geometric;  // average logits, not probabilities

  const float *classes_f32, *positives_f32;  // [padded C] weights as floats, zeros behind
  double soft_share, hard_share;             // the factors of a row's two parts
  double gradient_factor;                    // the reduction's
  double* row_loss;                          // [N]
};

constexpr int kMaxLanes = 16, kMaxParts = 32;
// Rows are walked in blocks of so many vectors, which stay in the first-level cache together with their exponentials.
constexpr int64_t kBlockVectors = 64;
// Up to this many classes, vectors run across rows instead of along one: nothing is then reduced over lanes, and no lane is
// wasted on a row's end. It takes enough rows, unless a row is too narrow to fill a few vectors.
// Members' codes are looked up along a row only (row_codes.h): that pays from fewer classes on.
constexpr int64_t kNarrowClasses = 512, kNarrowCodes = 256, kVeryNarrowClasses = 32, kNeighbours = 8;

// Also where neighbouring rows are contiguous.
inline bool runs_across(const Problem& p) {
  return p.student.class_stride != 1 || (p.kind != Kind::topk && p.targets.class_stride != 1) || p.classes <= kVeryNarrowClasses ||
         (p.classes <= (p.targets.type == Element::u8 && p.members_used > 1 ? kNarrowCodes : kNarrowClasses) && p.inner >= kNeighbours);
}

// A class is its own problem: vectors run across rows only where they would be mostly empty along one, or where classes lie apart.
inline bool runs_across(const MultilabelProblem& p) {
  const auto apart = [](const Matrix& m) { return m.data && m.class_stride != 1; };
  return apart(p.student) || (p.kind != Kind::topk && apart(p.targets)) || apart(p.marks) || apart(p.mask) || p.classes <= kVeryNarrowClasses;
}

// Runs part(context, i) for i in [0, parts), on threads where there are some.
struct Team {
  int parts;
  void (*run)(int parts, void (*part)(void* context, int i), void* context);
};

struct Kernels {
  const char* name;
  int lanes;
  // Units [begin, end) of a problem, each with the whole team; `scratch` has scratch_bytes(problem) bytes, aligned to 64.
  void (*rows)(const Problem&, int64_t begin, int64_t end, void* scratch, const Team&);
  size_t (*scratch_bytes)(const Problem&);
  // The same for the multi-label loss, without a team.
  void (*multilabel_rows)(const MultilabelProblem&, int64_t begin, int64_t end, void* scratch);
  size_t (*multilabel_scratch_bytes)(const MultilabelProblem&);

  // A row, or a group of `lanes` neighbouring ones.
  template <class P>
  int64_t units(const P& p) const {
    return runs_across(p) ? p.rows / p.inner * ((p.inner + lanes - 1) / lanes) : p.rows;
  }
};

// One set for each instruction set; each is its own translation unit.
extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
// The same in double precision and by the definition: for float64 inputs, and for rows that leave float's range.
void row_in_double(const Problem&, int64_t row);
void multilabel_row_in_double(const MultilabelProblem&, int64_t row);

}  // namespace ensdistill
