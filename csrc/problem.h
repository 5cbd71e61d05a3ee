// One call of the loss, as plain pointers and strides: the border between torch and the kernels. Free of
// torch and of the device; each device's Problem adds data for its own kernels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace ensdistill {

// Each list makes an enum here and its names in names.h.
#define ENSDISTILL_ELEMENTS(f) f(f64) f(f32) f(bf16) f(f16) f(u8)
#define ENSDISTILL_KINDS(f) f(logits) f(log_probs) f(probs) f(topk)
#define ENSDISTILL_COMBINERS(f) f(prob) f(logit) f(log_prob)
#define ENSDISTILL_TAIL_MODES(f) f(tail) f(renormalize) f(zero)
#define ENSDISTILL_REDUCTIONS(f) f(mean) f(sum) f(none)

#define ENSDISTILL_VALUE(name) name,
enum class Element : int { ENSDISTILL_ELEMENTS(ENSDISTILL_VALUE) };
enum class Kind : int { ENSDISTILL_KINDS(ENSDISTILL_VALUE) };
enum class Combiner : int { ENSDISTILL_COMBINERS(ENSDISTILL_VALUE) };
enum class TailMode : int { ENSDISTILL_TAIL_MODES(ENSDISTILL_VALUE) };
enum class Reduction : int { ENSDISTILL_REDUCTIONS(ENSDISTILL_VALUE) };
#undef ENSDISTILL_VALUE
enum class Divergence : int {
#define ENSDISTILL_DIVERGENCE(name, type) name,
#include "divergences.def"
};

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

// All settings of one call, by name.
struct LossSettings {
#define ENSDISTILL_CHOICE(type, name) type name;
#define ENSDISTILL_SETTING(type, name) type name;
#include "loss_arguments.def"
};

struct LossCall : LossSettings {
  int64_t rows, inner, classes;  // N = O * I, I, C

  Matrix student;
  Matrix targets;  // member 0; for Kind::topk log-probabilities [N, entries]
  int64_t target_member_stride;
  const float* scale;   // [K, N], for u8 only
  const float* offset;  // [K, N], for u8 only
  int64_t scale_member_stride, scale_row_stride, offset_member_stride, offset_row_stride;

  const int64_t* ids;  // [N, entries], for Kind::topk
  int64_t entries;
  const void* tail;  // [N] float or double log-mass outside, for TailMode::tail
  bool tail_is_double;

  const int64_t* labels;         // [N], or null
  const double* sample_weights;  // [N], or null
  const double* class_weights;   // [C], or null

  void* gradient;  // the student's type, or null
  Matrix gradient_layout;

  ENSDISTILL_HD double sample_weight(int64_t row) const { return sample_weights ? sample_weights[row] : 1.0; }
  // Rows of weight 0 are not read, so their values can't matter.
  ENSDISTILL_HD bool active(int64_t row) const { return sample_weight(row) != 0; }
  // Whether the row's label is known; `labels` must be given.
  ENSDISTILL_HD bool labelled(int64_t row) const { return labels[row] != ignore_index; }
  // Whether labels have a share: of any row, or of this one.
  ENSDISTILL_HD bool hard() const { return labels && alpha < 1; }
  ENSDISTILL_HD bool hard(int64_t row) const { return hard() && labelled(row); }
  // The factor of a row's cross entropy, times the number of labelled rows in a mean. A mean divides the sum over all rows by N, but
  // the cross entropy has terms from the labelled rows alone: it is scaled so that its mean is over those.
  ENSDISTILL_HD double hard_share() const { return (1 - alpha) * (reduction == Reduction::mean ? double(rows) : 1.0); }
  // The factor of every row's gradient, and of the sum of their losses.
  ENSDISTILL_HD double row_factor() const {
    return reduction == Reduction::mean ? 1.0 / double(rows > 0 ? rows : 1) : reduction == Reduction::sum ? 1.0 / divisor : 1.0;
  }
  ENSDISTILL_HD double target_temperature() const { return kind == Kind::logits ? temperature : 1.0; }
};

// At a higher temperature all probabilities are nearly equal, and T^2 magnifies the rounding error of their difference.
constexpr double kMaxFloatTemperature = 32;

// Probabilities whose sum is far from 1 belong to no distribution; without the mass outside, their sum may be less than 1.
// Entries that are divided by their sum may be counts.
constexpr double kSumTolerance = 0.05;
ENSDISTILL_HD bool is_mass(double sum, TailMode mode) {
  return mode == TailMode::renormalize || (sum <= 1 + kSumTolerance && (mode == TailMode::zero || sum >= 1 - kSumTolerance));
}

}  // namespace ensdistill
