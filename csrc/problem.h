// What one call of the loss computes, as plain pointers and strides: the border between torch and the kernels. Free of
// torch and of the device; each device's Problem adds what it prepares for its own kernels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace ensdistill {

enum class Element : int { f64, f32, bf16, f16, u8 };
enum class Kind : int { logits, log_probs, probs, topk };
enum class Divergence : int { forward_kl, reverse_kl, jsd, tvd };
enum class TailMode : int { tail, renormalize, zero };

ENSDISTILL_HD int64_t bytes_of(Element type) { return type == Element::u8 ? 1 : type == Element::f32 ? 4 : type == Element::f64 ? 8 : 2; }

// [rows, classes] in memory: row n = (outer, inner) starts at outer * outer_stride + inner * inner_stride. Strides in elements.
struct Matrix {
  const void* data;
  Element type;
  int64_t outer_stride, inner_stride, class_stride;

  ENSDISTILL_HD int64_t at(int64_t row, int64_t inner) const {
    return row < inner ? row * inner_stride : row / inner * outer_stride + row % inner * inner_stride;  // mostly O = 1: no division
  }
};

struct LossCall {
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

  const int64_t* labels;  // [N], or null
  int64_t ignore_index;
  const double* sample_weights;  // [N], or null
  const double* class_weights;   // [C], or null

  Divergence divergence;
  double beta, temperature, alpha, label_smoothing, z_loss;

  void* gradient;  // the student's type, or null
  Matrix gradient_layout;

  ENSDISTILL_HD bool counted(int64_t row) const { return !labels || labels[row] != ignore_index; }
  ENSDISTILL_HD double sample_weight(int64_t row) const { return sample_weights ? sample_weights[row] : 1.0; }
  // Rows that don't count, or have weight 0, are not looked at: what they hold can't matter.
  ENSDISTILL_HD bool active(int64_t row) const { return counted(row) && sample_weight(row) != 0; }
  ENSDISTILL_HD bool hard() const { return labels && alpha < 1; }
  ENSDISTILL_HD double target_temperature() const { return kind == Kind::logits ? temperature : 1.0; }
};

// At a higher temperature all probabilities are nearly equal, and T^2 magnifies what a float has lost of their difference.
constexpr double kMaxFloatTemperature = 32;

// Probabilities that are far from adding up to 1 belong to no distribution; where what is outside isn't told, to less. What
// is divided by its sum may be counts.
constexpr double kSumTolerance = 0.05;
ENSDISTILL_HD bool is_mass(double sum, TailMode mode) {
  return mode == TailMode::renormalize || (sum <= 1 + kSumTolerance && (mode == TailMode::zero || sum >= 1 - kSumTolerance));
}

}  // namespace ensdistill
