// The mathematics of one class of the multi-label loss, free of torch and of any instruction set. V is a scalar or a SIMD vector, M its
// elementary functions. A class is a coin: present or absent.
//
// Notation: s student logits, z_k teacher logits, q = sigmoid(s / T), p = the mixture of the sigmoid(z_k / T), y labels.
#pragma once

#include "host_device.h"

namespace ensdistill {

// Probabilities come from sums and from stores of few bits, so one may be a little above 1.
constexpr double kProbabilityTolerance = 1e-3;

// The probabilities of a class's presence and absence. Each is made on its own: 1 - p has no digits where p is near 1.
template <class V>
struct Coin {
  V yes, no;
};

// sigmoid(x) and sigmoid(-x) from e = exp(-|x|).
template <class V>
ENSDISTILL_HD Coin<V> coin_of(V x, V e) {
  const V larger = 1 / (1 + e), smaller = e * larger;
  return {x > V{} ? larger : smaller, x > V{} ? smaller : larger};
}

// From a stored probability, or from its logarithm with value = exp(log): NaN where it is none.
template <class V>
ENSDISTILL_HD Coin<V> coin_of_probability(V value) {
  const V one = V{} + 1, most = one + float(kProbabilityTolerance), none = V{} + __builtin_nanf("");
  const V yes = value > one ? (value > most ? none : one) : (value >= V{} ? value : none);
  return {yes, one - yes};
}

// q - p + p log(p / q). Its sum over presence and absence is the divergence, since the differences cancel there; a rounding error r
// of p then costs r * log(p / q) instead of r, so that equal coins are at distance 0 and near ones keep their digits.
template <class M, class V>
ENSDISTILL_HD V coin_side(V p, V q, V tiny) {
  const V high = p > q ? p : q, low = p > q ? q : p;
  const V log_ratio = M::log1p((high - low) / low), term = p * (p > q ? log_ratio : -log_ratio);
  return (q - p) + (p > tiny ? term : V{});
}

// KL(p || q) of two coins, q = sigmoid(x), e = exp(-|x|). `tiny`: below it a number has lost bits.
template <class M, class V>
ENSDISTILL_HD V coin_kl(const Coin<V>& p, const Coin<V>& q, V x, V e, V tiny) {
  V value = coin_side<M>(p.yes, q.yes, tiny) + coin_side<M>(p.no, q.no, tiny);
  const auto lost = e < tiny + tiny;  // of q only its logarithm is left
  if (M::any(lost)) {
    const V log_yes = x < V{} ? x : V{}, log_no = x > V{} ? -x : V{};
    const V yes = p.yes * (M::log(p.yes) - log_yes), no = p.no * (M::log(p.no) - log_no);
    const V exact = (p.yes > tiny ? yes : p.yes) + (p.no > tiny ? no : p.no);
    value = lost ? exact : value;
  }
  return value < V{} ? V{} : value;
}

// q - p, as a difference of the two smaller numbers where these are near 1.
template <class V>
ENSDISTILL_HD V coin_difference(const Coin<V>& q, const Coin<V>& p, V x) {
  return x > V{} ? p.no - q.no : q.yes - p.yes;
}

// Cross entropy of a label y with a factor `positive` of its positive part, and the derivative with respect to the logit x.
template <class V>
struct Marked {
  V value, slope;
};
template <class M, class V>
ENSDISTILL_HD Marked<V> cross_entropy_of_mark(V y, V positive, const Coin<V>& q, V x, V e) {
  const V yes = positive * y, no = 1 - y, log_sum = M::log1p(e);
  const V linear = x > V{} ? no * x : -(yes * x);
  const V weight = x > V{} ? no : yes;
  return {(yes + no) * log_sum + (weight == V{} ? V{} : linear), no * q.yes - yes * q.no};
}

}  // namespace ensdistill
