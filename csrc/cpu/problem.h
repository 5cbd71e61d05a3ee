// What one call of the loss computes, as plain pointers and strides: the border between torch and the kernels.
#pragma once
#include <cstdint>

namespace ensdistill {

enum class Element : int { f64, f32, bf16, f16, u8 };

struct Problem {
  int64_t rows, classes;  // N, C

  const void* student;  // [N, C], unit stride in C
  Element student_type;
  int64_t student_stride;

  const void* targets;  // [K, N, C], unit stride in C
  Element target_type;
  int64_t target_member_stride, target_row_stride;
  const float* scale;   // [K, N], for u8 only
  const float* offset;  // [K, N], for u8 only
  int64_t scale_member_stride, scale_row_stride, offset_member_stride, offset_row_stride;

  const int64_t* members;  // [members_used] those with a weight above zero
  const double* weights;   // [members_used] normalised to sum to one
  int64_t members_used;
  bool geometric;  // average logits (equal to averaging log-probabilities, once normalised), not probabilities

  const int64_t* labels;  // [N], unit stride, or null
  int64_t ignore_index;
  double temperature, alpha, label_smoothing;

  double gradient_factor;  // 1, or 1 / counted rows
  void* gradient;          // [N, C] contiguous, the student's type, or null
  double* row_loss;        // [N]
};

// Computes rows [begin, end) of a problem. `scratch` has scratch_bytes(problem) bytes, aligned to 64.
using RowsFunction = void (*)(const Problem&, int64_t begin, int64_t end, void* scratch);

struct Kernels {
  const char* name;
  RowsFunction rows;
};

// One set for each instruction set; each is its own translation unit.
extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
void rows_float64(const Problem&, int64_t begin, int64_t end, void* scratch);

// Rows are walked in blocks that stay in the first-level cache together with their exponentials.
constexpr int64_t kBlockVectors = 128;
// Up to this many classes, vectors run across rows instead of along one.
constexpr int64_t kNarrowClasses = 64;
constexpr int64_t kScratchRows = 8;  // E, E1, P, M of row_kernel.h and, for narrow rows, S, Z, A, G
constexpr int64_t kMaxLanes = 16;

inline int64_t padded(int64_t classes) { return classes <= kNarrowClasses ? classes * kMaxLanes : (classes + 63) / 64 * 64; }
inline int64_t max_blocks(int64_t classes) { return padded(classes) / 128 + 2; }
// Every scratch element is at most a double.
inline int64_t scratch_bytes(int64_t classes) {
  return (kScratchRows * padded(classes) + 8 * kMaxLanes * max_blocks(classes)) * int64_t(sizeof(double));
}

}  // namespace ensdistill
