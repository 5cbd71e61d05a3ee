// The mathematics of one row, free of torch and of any instruction set. V is a scalar or a SIMD vector: the CPU kernels
// instantiate it with vectors of floats, the double-precision rows and CUDA with scalars.
//
// Notation: s student logits, z_k teacher logits, q = softmax(s/T), p = the mixture of the softmax(z_k/T).
#pragma once

#include "host_device.h"
#include "problem.h"

namespace ensdistill {

// One class's share of a divergence D(p, q), and slope = q * dD/dq up to a multiple of q. With R = sum of the slopes, the
// gradient of T^2 D with respect to s is T * (slope - q * R): softmax's own derivative, once for every divergence.
template <class V>
struct Term {
  V value, slope;
};

// A divergence is one struct, listed in divergences.def: at(p, q, log_ratio, beta), with log_ratio = log(p / q) where kNeedsRatio is true. Classes
// without mass add 0, also where the ratio is infinite: 0 * inf must not poison the row. Where the true value is infinite,
// infinity comes out. M is where the logarithm comes from.
struct ForwardKl {
  static constexpr bool kNeedsRatio = true;
  template <class M, class V>
  static ENSDISTILL_HD Term<V> at(V p, V, V log_ratio, V) {
    const V term = p * log_ratio;
    return {p > V{} ? term : (p != p ? p : V{}), -p};  // a NaN stays visible
  }
};

struct ReverseKl {
  static constexpr bool kNeedsRatio = true;
  template <class M, class V>
  static ENSDISTILL_HD Term<V> at(V, V q, V log_ratio, V) {
    const V term = -q * log_ratio;
    const V value = q > V{} ? term : (q != q ? q : V{});
    return {value, value};
  }
};

// beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.
struct GeneralizedJsd {
  static constexpr bool kNeedsRatio = false;
  template <class M, class V>
  static ENSDISTILL_HD Term<V> at(V p, V q, V, V beta) {
    const V m = beta * p + (1 - beta) * q;
    const V teacher = beta * p * M::log(p / m), student = (1 - beta) * q * M::log(q / m);
    const V slope = q > V{} ? student : (q != q ? q : V{});
    return {(p > V{} ? teacher : (p != p ? p : V{})) + slope, slope};
  }
};

struct TotalVariation {
  static constexpr bool kNeedsRatio = false;
  template <class M, class V>
  static ENSDISTILL_HD Term<V> at(V p, V q, V, V) {
    const V half = q * 0.5f, none = V{};
    const V distance = (p > q ? p - q : q - p) * 0.5f;
    return {distance, q > p ? half : (q < p ? -half : none)};
  }
};

// One that is known at run time only.
struct AnyDivergence {
  Divergence which;
  template <class M, class V>
  ENSDISTILL_HD Term<V> at(V p, V q, V log_ratio, V beta) const {
    switch (which) {
#define ENSDISTILL_DIVERGENCE(name, type) \
  case Divergence::name: return type::at<M>(p, q, log_ratio, beta);
#include "divergences.def"
    }
    __builtin_unreachable();
  }
};

// Whether log p matters also where p is too small for a float: the divergence has it as a factor of q. In the forward KL p itself
// is the other factor, so that such a class adds nothing.
ENSDISTILL_HD bool needs_log_of_little(Divergence divergence) {
  switch (divergence) {
#define ENSDISTILL_DIVERGENCE(name, type) \
  case Divergence::name: return type::kNeedsRatio && divergence != Divergence::forward_kl;
#include "divergences.def"
  }
  __builtin_unreachable();
}

// One class's part of KL(p || q) from logarithms, where these are there anyway.
template <class V>
ENSDISTILL_HD V forward_kl_term(V p, V log_p, V log_q) {
  return ForwardKl::at<void>(p, p, log_p - log_q, p).value;
}

// d/ds of  scale/T * T^2 * KL(p || q)  at one class, for a p that sums to one; scale = alpha * T * (the reduction's factor).
template <class V>
ENSDISTILL_HD V forward_kl_gradient(V q, V p, V scale) {
  return scale * (q - p);
}

// Cross entropy of one row with label smoothing and class weights w: log_sum_exp and the label's logit at T = 1,
// weighted_mean_logit = mean of w * s and mean_weight = mean of w over the classes.
template <class V>
ENSDISTILL_HD V cross_entropy(V log_sum_exp, V label_logit, V label_weight, V weighted_mean_logit, V mean_weight, V smoothing) {
  const V hard = (V{} + 1 - smoothing) * label_weight * (log_sum_exp - label_logit);
  // Unsmoothed rows must not meet the mean logit: with a masked class it is -inf. Nor must a label of weight 0 its own.
  const V counted = label_weight > V{} ? hard : V{};
  return smoothing > V{} ? counted + smoothing * (mean_weight * log_sum_exp - weighted_mean_logit) : counted;
}

// One logit of a row stored as codes: code 0 of a row with a negative scale is a masked class (see targets.py).
template <class V>
ENSDISTILL_HD V decode(V code, V step, V offset, V zero_value) {
  return code == V{} ? zero_value : code * step + offset;
}

// The constants of a row that decode() needs, from the scale and offset as stored. A scale that is no number shows through code 0, too.
template <class R>
struct AffineCodes {
  R step, offset, zero_value;
  ENSDISTILL_HD AffineCodes(float scale, float offset)
      : step(scale < 0 ? -scale : scale), offset(offset), zero_value(scale < 0 ? -__builtin_inff() : offset + 0 * scale) {}
};

}  // namespace ensdistill
