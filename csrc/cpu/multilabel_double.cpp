// One row of the multi-label loss in double precision, class by class: for float64 inputs, and for temperatures at which float32 loses
// digits that matter.
#include <cmath>
#include <vector>

#include "../coinmath.h"
#include "../rowmath.h"
#include "elements.h"
#include "problem.h"

namespace ensdistill {
namespace {

constexpr double kMinusInfinity = -__builtin_inf(), kTiny = 1e-300;

struct Double {
  static double log(double x) { return std::log(x); }
  static double log1p(double x) { return std::log1p(x); }
};

Coin<double> coin_of_log(double log_p) {
  const Coin<double> coin = coin_of_probability(std::exp(log_p));
  return {coin.yes, log_p < 0 ? -std::expm1(log_p) : coin.no};
}

class Targets {
 public:
  Targets(const MultilabelProblem& p, int64_t row) : p(p), row(row) {
    if (p.kind == Kind::topk && p.taught()) list();
  }

  Coin<double> at(int64_t c) const {
    if (p.kind == Kind::topk) return coins[size_t(c)];
    Coin<double> mixture{0, 0};
    double mean = 0;
    for (int64_t k = 0; k < p.members_used; ++k) {
      const double x = value(k, c), w = p.weights[k];
      if (p.geometric) {
        mean += w * logit(x);
        continue;
      }
      const Coin<double> coin = p.kind == Kind::logits  ? coin_of(x, std::exp(-std::fabs(x)))
                                : p.kind == Kind::probs ? coin_of_probability(x)
                                                        : coin_of_log(x);
      mixture.yes += w * coin.yes, mixture.no += w * coin.no;
    }
    return p.geometric ? coin_of(mean, std::exp(-std::fabs(mean))) : mixture;
  }

 private:
  const MultilabelProblem& p;
  const int64_t row;
  std::vector<Coin<double>> coins;  // of sparse targets

  // A member's logit at T, or its probability as stored.
  double value(int64_t k, int64_t c) const {
    const int64_t m = p.members[k];
    double x = read(p.targets.data, p.targets.type, m * p.target_member_stride + p.targets.at(row, p.inner) + c * p.targets.class_stride);
    if (p.targets.type == Element::u8) {
      const AffineCodes<double> map(p.scale[m * p.scale_member_stride + row * p.scale_row_stride],
                                    p.offset[m * p.offset_member_stride + row * p.offset_row_stride]);
      x = decode(x, map.step, map.offset, map.zero_value);
    }
    return x / p.target_temperature();
  }
  double logit(double x) const {
    if (p.kind == Kind::logits) return x;
    const Coin<double> coin = p.kind == Kind::probs ? coin_of_probability(x) : coin_of_log(x);
    return (p.kind == Kind::probs ? std::log(coin.yes) : x > 0 ? 0 : x) - std::log(coin.no);
  }
  // Listed classes have their own probability, all others the same one.
  void list() {
    const int64_t at = row * p.entries;
    int64_t others = p.classes;
    for (int64_t e = at; e < at + p.entries; ++e) others -= read(p.targets.data, p.targets.type, e) != kMinusInfinity;
    double rest = 0;
    if (p.tail_mode == TailMode::tail && others > 0)
      rest = std::exp(read(p.tail, p.tail_is_double ? Element::f64 : Element::f32, row)) / double(others);
    coins.assign(size_t(p.classes), coin_of_probability(rest));
    std::vector<bool> listed(size_t(p.classes), false);
    bool valid = true;
    for (int64_t e = at; e < at + p.entries; ++e) {
      const double log_p = read(p.targets.data, p.targets.type, e);
      const int64_t id = p.ids[e];
      if (id < 0 || id >= p.classes) valid = false;
      else if (log_p != kMinusInfinity) valid = valid && !listed[size_t(id)], listed[size_t(id)] = true, coins[size_t(id)] = coin_of_log(log_p);
    }
    if (!valid) coins.assign(size_t(p.classes), {__builtin_nan(""), __builtin_nan("")});
  }
};

}  // namespace

void multilabel_row_in_double(const MultilabelProblem& p, int64_t row) {
  const int64_t from = p.student.at(row, p.inner), to = p.gradient ? p.gradient_layout.at(row, p.inner) : 0;
  const auto put = [&](int64_t c, double g) {
    if (p.gradient) write(p.gradient, p.gradient_layout.type, to + c * p.gradient_layout.class_stride, g);
  };
  p.row_loss[row] = 0;
  if (!p.active(row)) {
    for (int64_t c = 0; c < p.classes; ++c) put(c, 0);
    return;
  }
  const Targets targets(p, row);
  double soft = 0, hard = 0;
  const double by_row = p.sample_weight(row), of_soft = by_row * p.soft_share * p.gradient_factor / p.temperature,
               of_hard = by_row * p.hard_share * p.gradient_factor;
  for (int64_t c = 0; c < p.classes; ++c) {
    const double weight = p.class_weight(c);
    const bool masked = p.mask.data && read(p.mask.data, Element::u8, p.mask.at(row, p.inner) + c * p.mask.class_stride) == 0;
    if (masked || !(weight > 0)) {
      put(c, 0);
      continue;
    }
    const double s = read(p.student.data, p.student.type, from + c * p.student.class_stride);
    double g = 0;
    if (p.taught()) {
      const double x = s / p.temperature, e = std::exp(-std::fabs(x));
      const Coin<double> mixture = targets.at(c), q = coin_of(x, e);
      soft += weight * coin_kl<Double>(mixture, q, x, e, kTiny);
      g += of_soft * weight * coin_difference(q, mixture, x);
    }
    if (p.marked()) {
      const double y = read(p.marks.data, p.marks.type, p.marks.at(row, p.inner) + c * p.marks.class_stride), e = std::exp(-std::fabs(s));
      if (y != p.unknown()) {
        const double wanted = y >= 0 && y <= 1 ? y + p.label_smoothing * (0.5 - y) : __builtin_nan("");
        const CoinTerm<double> term = label_cross_entropy<Double>(wanted, p.positive_weight(c), coin_of(s, e), s, e);
        hard += weight * term.value, g += of_hard * weight * term.slope;
      }
    }
    put(c, g);
  }
  p.row_loss[row] = by_row * (p.soft_share * soft + p.hard_share * hard);
}

}  // namespace ensdistill
