// One row in double precision, by the definition: from logarithms, each class on its own, no blocks and no vectors. For
// float64 inputs, and for the rare row where float32 loses digits that matter (a probability below 1e-38 under a logarithm).
#include <algorithm>
#include <cmath>
#include <vector>

#include "../rowmath.h"
#include "elements.h"
#include "problem.h"

namespace ensdistill {
namespace {

constexpr double kInfinity = __builtin_inf(), kNan = __builtin_nan("");

struct Double {
  static double log(double x) { return std::log(x); }
};

using Values = std::vector<double>;

// log(sum of exp(x)); -inf for nothing.
double log_sum_exp(const Values& x) {
  double max = -kInfinity, sum = 0;
  for (double v : x) max = v > max || v != v ? v : max;
  if (max == -kInfinity) return max;
  for (double v : x) sum += std::exp(v - max);
  return max + std::log(sum);
}

double log_add(double a, double b) {
  const double max = a > b ? a : b;
  if (max == -kInfinity) return max;
  return max + std::log(std::exp(a - max) + std::exp(b - max));
}

double entropy(const Values& log_p) {
  double h = 0;
  for (double l : log_p) h -= l == -kInfinity ? 0 : std::exp(l) * l;
  return h;
}

int64_t best(const Values& x) {
  int64_t at = 0;
  for (size_t c = 1; c < x.size(); ++c)
    if (x[c] > x[at]) at = int64_t(c);
  return at;
}

struct Mixture {
  Values log_p;
  double members_entropy = 0;
};

// A member's log-probabilities at T.
Values member_log_probs(const Problem& p, int64_t row, int64_t k) {
  const int64_t m = p.members[k], at = m * p.target_member_stride + p.targets.at(row, p.inner);
  Values x(p.classes);
  for (int64_t c = 0; c < p.classes; ++c) x[c] = read(p.targets.data, p.targets.type, at + c * p.targets.class_stride);
  if (p.kind == Kind::probs) {
    double sum = 0;
    for (double v : x) sum += v < 0 ? kNan : v;
    if (!is_mass(sum, TailMode::tail)) sum = kNan;
    for (double& v : x) v = std::log(v / sum);
    return x;
  }
  if (p.targets.type == Element::u8) {
    const AffineCodes<double> map(p.scale[m * p.scale_member_stride + row * p.scale_row_stride],
                                  p.offset[m * p.offset_member_stride + row * p.offset_row_stride]);
    for (double& v : x) v = decode(v, map.step, map.offset, map.zero_value);
  }
  for (double& v : x) v /= p.target_temperature();
  const double lse = log_sum_exp(x);
  for (double& v : x) v -= lse;
  return x;
}

Mixture mixture_of(const Problem& p, int64_t row) {
  Mixture mixture;
  for (int64_t k = 0; k < p.members_used; ++k) {
    Values x = member_log_probs(p, row, k);
    const double w = p.weights[k];
    if (p.statistics) mixture.members_entropy += w * entropy(x);
    if (k == 0 && p.members_used == 1) {
      mixture.log_p = std::move(x);
      break;
    }
    if (k == 0) mixture.log_p.assign(p.classes, p.geometric ? 0 : -kInfinity);
    for (int64_t c = 0; c < p.classes; ++c)
      mixture.log_p[c] = p.geometric ? mixture.log_p[c] + w * x[c] : log_add(mixture.log_p[c], std::log(w) + x[c]);
  }
  if (p.geometric) {
    const double lse = log_sum_exp(mixture.log_p);
    for (double& v : mixture.log_p) v -= lse;
  }
  return mixture;
}

// The named classes' log-probabilities, -inf elsewhere, and the log-mass of the bucket outside them.
Mixture named_of(const Problem& p, int64_t row, double* log_outside, std::vector<bool>* named) {
  Mixture mixture;
  mixture.log_p.assign(p.classes, -kInfinity);
  mixture.members_entropy = kNan;
  Values given;
  for (int64_t e = row * p.entries; e < (row + 1) * p.entries; ++e) {
    const double log_p = read(p.targets.data, p.targets.type, e);
    const int64_t id = p.ids[e];
    given.push_back(log_p);
    if (id < 0 || id >= p.classes) {
      mixture.log_p.assign(p.classes, kNan);
      break;
    }
    if (log_p == -kInfinity) continue;
    mixture.log_p[id] = (*named)[id] ? kNan : log_p;  // named twice
    (*named)[id] = true;
  }
  if (p.tail_mode == TailMode::renormalize) {
    const double lse = log_sum_exp(given);
    for (double& v : mixture.log_p) v -= lse;
  }
  if (p.tail_mode == TailMode::tail) *log_outside = read(p.tail, p.tail_is_double ? Element::f64 : Element::f32, row);
  double mass = 0;
  for (double v : given) mass += std::exp(v);
  if (std::find(named->begin(), named->end(), false) != named->end()) mass += std::exp(*log_outside);
  if (!is_mass(mass, p.tail_mode)) mixture.log_p.assign(p.classes, kNan);
  return mixture;
}

template <class D>
void row_of(const Problem& p, int64_t row) {
  const int64_t C = p.classes, at = p.student.at(row, p.inner);
  Values s(C), log_q(C);
  for (int64_t c = 0; c < C; ++c) s[c] = read(p.student.data, p.student.type, at + c * p.student.class_stride), log_q[c] = s[c] / p.temperature;
  const double lse_t = log_sum_exp(log_q), lse = log_sum_exp(s);
  for (double& v : log_q) v -= lse_t;

  const bool sparse = p.kind == Kind::topk;
  std::vector<bool> named(C, !sparse);
  double log_outside = -kInfinity;
  const Mixture mixture = sparse ? named_of(p, row, &log_outside, &named) : mixture_of(p, row);

  const auto term_of = [&](double log_p, double log_q) {
    const double p_ = std::exp(log_p), q_ = std::exp(log_q);
    return D::template at<Double>(p_, q_, log_p - log_q, p.beta);
  };
  double divergence = 0, slopes = 0, mixture_entropy = entropy(mixture.log_p);
  Values slope(C), left;
  for (int64_t c = 0; c < C; ++c) {
    if (!named[c]) {
      left.push_back(log_q[c]);
      continue;
    }
    const Term<double> term = term_of(mixture.log_p[c], log_q[c]);
    slope[c] = term.slope, divergence += term.value, slopes += term.slope;
  }
  if (!left.empty()) {
    const double log_left = log_sum_exp(left);
    const Term<double> term = term_of(log_outside, log_left);
    divergence += term.value, slopes += term.slope;
    if (log_outside != -kInfinity) mixture_entropy -= std::exp(log_outside) * log_outside;
    for (int64_t c = 0; c < C; ++c)  // each class's share of the bucket
      if (!named[c] && log_q[c] != -kInfinity) slope[c] = term.slope * std::exp(log_q[c] - log_left);
  }

  const double hard = p.hard(row) ? p.label_share : 0, sample_weight = p.sample_weight(row), factor = p.gradient_factor * sample_weight;
  const int64_t label = p.hard(row) ? p.labels[row] : 0;
  const auto class_weight = [&](int64_t c) { return p.class_weights ? p.class_weights[c] : 1.0; };
  const double mean_weight = p.class_weight_sum / C;
  double loss = p.alpha * p.temperature * p.temperature * divergence;
  if (p.z_loss != 0) loss += p.z_loss * lse * lse;
  if (hard > 0) {
    double weighted = 0;
    for (int64_t c = 0; c < C; ++c)
      if (class_weight(c) > 0) weighted += class_weight(c) * s[c];
    loss += hard * cross_entropy(lse, s[label], class_weight(label), weighted / C, mean_weight, p.label_smoothing);
  }
  p.row_loss[row] = sample_weight * loss;

  if (p.gradient) {
    const int64_t to = p.gradient_layout.at(row, p.inner);
    const double of_q1 = hard * ((1 - p.label_smoothing) * class_weight(label) + p.label_smoothing * mean_weight) + 2 * p.z_loss * lse;
    for (int64_t c = 0; c < C; ++c) {
      double g = p.alpha * p.temperature * (slope[c] - std::exp(log_q[c]) * slopes);
      if (hard > 0 || p.z_loss != 0) g += of_q1 * std::exp(s[c] - lse);
      if (hard > 0) g -= hard * (p.label_smoothing / C * class_weight(c) + (c == label ? (1 - p.label_smoothing) * class_weight(c) : 0));
      write(p.gradient, p.gradient_layout.type, to + c * p.gradient_layout.class_stride, factor * g);
    }
  }
  if (p.statistics) {
    double* statistics = p.statistics + 4 * row;
    statistics[0] = entropy(log_q), statistics[1] = mixture_entropy;
    statistics[2] = best(s) == best(mixture.log_p), statistics[3] = mixture_entropy - mixture.members_entropy;
  }
}

}  // namespace

void row_in_double(const Problem& p, int64_t row) {
  switch (p.divergence) {
#define ENSDISTILL_DIVERGENCE(name, type) \
  case Divergence::name: return row_of<type>(p, row);
#include "../divergences.def"
  }
}

}  // namespace ensdistill
