// The mathematics of one row, free of torch and of any instruction set. V is a scalar or a SIMD vector: the CPU
// kernels instantiate it with vectors of floats, the fp64 kernel and CUDA with scalars.
//
// Notation: s student logits, z_k teacher logits, q = softmax(s/T), p = the mixture of the softmax(z_k/T).
#pragma once

#if defined(__CUDACC__)
#define ENSDISTILL_HD __host__ __device__ __forceinline__
#else
#define ENSDISTILL_HD inline __attribute__((always_inline))
#endif

namespace ensdistill {

// One class's part of KL(p || q). Where the teacher has no mass the term is 0, also where log_q is -inf: 0 * -inf must
// not poison the row. Where p > 0 and log_q = -inf the true value, +inf, comes out.
template <class V>
ENSDISTILL_HD V forward_kl_term(V p, V log_p, V log_q) {
  const V term = p * (log_p - log_q);
  return p > V{} ? term : (p != p ? p : V{});  // a NaN stays visible
}

// d/ds of  kl_scale/T * T^2 * KL(p || q)  at one class, with kl_scale = alpha * T * (the reduction's factor).
template <class V>
ENSDISTILL_HD V forward_kl_gradient(V q, V p, V kl_scale) {
  return kl_scale * (q - p);
}

// Cross entropy of one row with label smoothing: log_sum_exp, the label's logit and the mean logit, all at T = 1.
template <class V>
ENSDISTILL_HD V cross_entropy(V log_sum_exp, V label_logit, V mean_logit, V smoothing) {
  const V hard = (V{} + 1 - smoothing) * (log_sum_exp - label_logit);
  // Unsmoothed rows must not meet mean_logit: with a masked class it is -inf.
  return smoothing > V{} ? hard + smoothing * (log_sum_exp - mean_logit) : hard;
}

// One logit of a row stored as codes: code 0 of a row with a negative scale is a masked class (see targets.py).
template <class V>
ENSDISTILL_HD V decode(V code, V step, V offset, V zero_value) {
  return code == V{} ? zero_value : code * step + offset;
}

// What decode() needs to know of a row, from the scale and offset as stored.
template <class R>
struct AffineCodes {
  R step, offset, zero_value;
  ENSDISTILL_HD AffineCodes(float scale, float offset)
      : step(scale < 0 ? -scale : scale), offset(offset), zero_value(scale < 0 ? -__builtin_inff() : offset) {}
};

}  // namespace ensdistill
