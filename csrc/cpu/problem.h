// What one call of the loss computes, as plain pointers and strides: the border between torch and the kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ensdistill {

enum class Element : int { f64, f32, bf16, f16, u8 };
enum class Kind : int { logits, log_probs, probs, topk };
enum class Divergence : int { forward_kl, reverse_kl, jsd, tvd };
enum class TailMode : int { tail, renormalize, zero };

// [rows, classes] in memory: row n = (outer, inner) starts at outer * outer_stride + inner * inner_stride. Strides in elements.
struct Matrix {
  const void* data;
  Element type;
  int64_t outer_stride, inner_stride, class_stride;

  int64_t at(int64_t row, int64_t inner) const { return row / inner * outer_stride + row % inner * inner_stride; }
};

struct Problem {
  int64_t rows, inner, classes;  // N = O * I, I, C

  Matrix student;
  Kind kind;
  Matrix targets;  // member 0; for Kind::topk log-probabilities [N, entries]
  int64_t target_member_stride;
  const float* scale;   // [K, N], for u8 only
  const float* offset;  // [K, N], for u8 only
  int64_t scale_member_stride, scale_row_stride, offset_member_stride, offset_row_stride;

  const int64_t* ids;  // [N, entries], for Kind::topk
  int64_t entries;
  const void* tail;  // [N] float or double log-mass outside, for TailMode::tail
  bool tail_is_double;
  TailMode tail_mode;

  const int64_t* members;  // [members_used] those with a weight above zero
  const double* weights;   // [members_used] normalised to sum to one
  int64_t members_used;
  bool geometric;  // average logits (equal to averaging log-probabilities, once normalised), not probabilities

  const int64_t* labels;  // [N], or null
  int64_t ignore_index;
  const double* sample_weights;   // [N], or null
  const double* class_weights;    // [C], or null
  const float* smoothed_classes;  // [padded C] class weights as floats, zeros behind; null where nothing needs them
  double class_weight_sum;

  Divergence divergence;
  double beta, temperature, alpha, label_smoothing, z_loss;

  double gradient_factor;  // 1, or 1 / counted rows, or 1 / divisor
  void* gradient;          // the student's type, or null
  Matrix gradient_layout;
  double* row_loss;    // [N]
  double* statistics;  // [N, 4], or null

  bool counted(int64_t row) const { return !labels || labels[row] != ignore_index; }
  double sample_weight(int64_t row) const { return sample_weights ? sample_weights[row] : 1.0; }
  // Rows that don't count, or have weight 0, are not looked at: what they hold can't matter.
  bool active(int64_t row) const { return counted(row) && sample_weight(row) != 0; }
  bool hard() const { return labels && alpha < 1; }
  double target_temperature() const { return kind == Kind::logits ? temperature : 1.0; }
};

constexpr int kMaxLanes = 16, kMaxParts = 32;
// Rows are walked in blocks of so many vectors, which stay in the first-level cache together with their exponentials.
constexpr int64_t kBlockVectors = 64;
// Up to this many classes, vectors run across rows instead of along one: nothing is then reduced over lanes, and no lane is
// wasted on a row's end. It takes enough rows, unless a row is too narrow to fill a few vectors.
constexpr int64_t kNarrowClasses = 512, kVeryNarrowClasses = 32, kNeighbours = 8;

// Also where neighbouring rows are what is contiguous.
inline bool runs_across(const Problem& p) {
  return p.student.class_stride != 1 || (p.kind != Kind::topk && p.targets.class_stride != 1) || p.classes <= kVeryNarrowClasses ||
         (p.classes <= kNarrowClasses && p.inner >= kNeighbours);
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

  // A row, or a group of `lanes` neighbouring ones.
  int64_t units(const Problem& p) const { return runs_across(p) ? p.rows / p.inner * ((p.inner + lanes - 1) / lanes) : p.rows; }
};

// One set for each instruction set; each is its own translation unit.
extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
// The same in double precision and by the definition: for float64 inputs, and for rows that leave float's range.
void row_in_double(const Problem&, int64_t row);

}  // namespace ensdistill
