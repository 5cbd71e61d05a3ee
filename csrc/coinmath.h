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

// KL(p || q) of two coins, one at a time, q = sigmoid(x), e = exp(-|x|). `tiny`: below it a number has lost bits.
template <class M, class V>
ENSDISTILL_HD V coin_kl(const Coin<V>& p, const Coin<V>& q, V x, V e, V tiny) {
  V value = coin_side<M>(p.yes, q.yes, tiny) + coin_side<M>(p.no, q.no, tiny);
  if (e < tiny + tiny) {  // of q only its logarithm is left
    const V log_yes = x < V{} ? x : V{}, log_no = x > V{} ? -x : V{};
    const V yes = p.yes * (M::log(p.yes) - log_yes), no = p.no * (M::log(p.no) - log_no);
    value = (p.yes > tiny ? yes : p.yes) + (p.no > tiny ? no : p.no);
  }
  return value < V{} ? V{} : value;
}

// q - p, as a difference of the two smaller numbers where these are near 1.
template <class V>
ENSDISTILL_HD V coin_difference(const Coin<V>& q, const Coin<V>& p, V x) {
  return x > V{} ? p.no - q.no : q.yes - p.yes;
}

// A class's share of the loss, and the derivative with respect to its logit.
template <class V>
struct CoinTerm {
  V value, slope;
};

// Cross entropy of a label y with a factor `positive` of its positive part, for a logit x.
template <class M, class V>
ENSDISTILL_HD CoinTerm<V> label_cross_entropy(V y, V positive, const Coin<V>& q, V x, V e) {
  const V yes = positive * y, no = 1 - y, log_sum = M::log1p(e);
  const V linear = x > V{} ? no * x : -(yes * x);
  const V weight = x > V{} ? no : yes;
  return {(yes + no) * log_sum + (weight == V{} ? V{} : linear), no * q.yes - yes * q.no};
}

// --- the same for many classes in single precision. Let e = exp(-|x|), r = 1 / (1 + e), and `against` the probability of the side that
// x speaks against. Both losses have log(1 + e) as a summand, which these leave out: over many classes it is the logarithm of one product.

// x log(x) + (1 - x) log(1 - x) for x in [0, 1/2], absolute error below 1e-7; NaN stays. (1 - x) log(1 - x) / x is a minimax polynomial.
template <class M, class V>
ENSDISTILL_HD V minus_entropy(V x) {
  const V least = V{} + 1e-37f;
  V y = V{} + 1.32253692e-1f;
  y = y * x + -1.39677256e-1f;
  y = y * x + 1.18884824e-1f;
  y = y * x + 2.04716809e-3f;
  y = y * x + 5.58460653e-2f;
  y = y * x + 8.27318206e-2f;
  y = y * x + 1.66697279e-1f;
  y = y * x + 4.99999404e-1f;
  return x * (y * x - 1.f + M::log(x > least ? x : least));
}

template <class V>
ENSDISTILL_HD CoinTerm<V> against_term(V x, V size, V against, V e, V r) {
  const V cost = size * against, difference = e * r - against;
  return {against == V{} ? V{} : cost, x > V{} ? -difference : difference};
}

// KL(p || sigmoid(x)), size = |x|.
template <class M, class V>
ENSDISTILL_HD CoinTerm<V> kl_term(const Coin<V>& p, V x, V size, V e, V r) {
  const CoinTerm<V> term = against_term(x, size, x > V{} ? p.no : p.yes, e, r);
  return {term.value + minus_entropy<M>(p.no < p.yes ? p.no : p.yes), term.slope};
}

// The cross entropy of a label y.
template <class V>
ENSDISTILL_HD CoinTerm<V> label_term(V y, V x, V size, V e, V r) {
  return against_term(x, size, x > V{} ? 1 - y : y, e, r);
}

}  // namespace ensdistill
