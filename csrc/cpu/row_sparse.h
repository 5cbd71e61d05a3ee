// Targets that name only some classes: what is outside them is one class more. Included after row_gradient.h.
//
// All classes outside share one factor, (slope of the bucket / q of the bucket - R), so the gradient is one sweep of the
// student's exponentials; the named classes are taken out of it and patched in. The bucket's q is the sum of what is left,
// never 1 minus the named: at a small tail that difference has no digits.

namespace ensdistill {
namespace ENSDISTILL_ISA {

struct Double {
  static double log(double x) { return std::log(x); }
};

template <class S>
template <class D>
void Row<S>::sparse() {
  prepare_scales();
  const int lanes = int(count);
  const int64_t entries = p.entries;
  const auto log_prob_at = [this](int64_t i) {
    return p.targets.type == Element::f64 ? static_cast<const double*>(p.targets.data)[i] : double(static_cast<const float*>(p.targets.data)[i]);
  };
  bool invalid[S::lanes] = {};
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t b = 0; b < blocks; ++b) patch_first[lane * blocks + b] = -1;
    if (!active[lane]) continue;
    const int64_t from = (row + lane) * entries;
    for (int64_t e = 0; e < entries; ++e) {
      entry_q[lane * entries + e] = -1;  // padding, until it is found to be none
      const int64_t id = p.ids[from + e];
      invalid[lane] = invalid[lane] || id < 0 || id >= p.classes;
      if (invalid[lane] || log_prob_at(from + e) == -__builtin_inf()) continue;
      const int64_t at = position(id, lane), block = at / S::lanes / kBlockVectors;
      if (std::signbit(e_q[at])) {  // named before
        invalid[lane] = true;
        continue;
      }
      entry_q[lane * entries + e] = double(e_q[at]) * q.factor(block)[at % S::lanes];
      e_q[at] = -0.f;
      patch_next[lane * entries + e] = patch_first[lane * blocks + block];
      patch_first[lane * blocks + block] = e;
    }
  }

  const bool bucket = p.tail_mode == TailMode::tail;
  vec left{};
  if (bucket || p.divergence != Divergence::forward_kl) {
    each_range([&, this](Part& part, int64_t begin, int64_t end) {
      each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
        vec sum{};
        for (int64_t i = first; i < first + n; ++i) sum += S::load(e_q + i * S::lanes);
        part.outside += sum * q.factor(block);
      });
    });
    left = sum_over(&Part::outside);
  }

  vec divergence{}, outside{};
  members_entropy = S::all(__builtin_nanf(""));
  for (int lane = 0; lane < lanes; ++lane) {
    if (!active[lane]) continue;
    const int64_t from = (row + lane) * entries;
    double total = 0, best = -__builtin_inf(), entropy = 0, value = 0, slopes = 0, named_q = 0;
    int64_t named = 0;
    for (int64_t e = 0; e < entries; ++e)
      if (entry_q[lane * entries + e] >= 0) total += std::exp(log_prob_at(from + e)), ++named;
    const double log_total = p.tail_mode == TailMode::renormalize ? std::log(total) : 0;
    for (int64_t e = 0; e < entries; ++e) {
      const double qe = entry_q[lane * entries + e], log_p = log_prob_at(from + e) - log_total, pe = std::exp(log_p);
      if (!(qe >= 0)) continue;
      const Term<double> term = D::template at<Double>(pe, qe, log_p - std::log(qe), p.beta);
      entry_slope[lane * entries + e] = term.slope;
      value += term.value, slopes += term.slope, named_q += qe, entropy -= pe > 0 ? pe * log_p : 0;
      if (pe > 0 && qe < kTiny) unsafe[lane] = -1;
      if (log_p > best) best = log_p, mixture_best[lane] = p.ids[from + e];
    }
    double mass = total, outside_slope = 0, sum = slopes;  // the bucket's for each unit of q; the sum of all, the bucket's too
    if (named < p.classes) {
      const double log_pt = !bucket            ? -__builtin_inf()
                            : p.tail_is_double ? static_cast<const double*>(p.tail)[row + lane]
                                               : double(static_cast<const float*>(p.tail)[row + lane]);
      const double pt = std::exp(log_pt), qt = left[lane];
      mass += pt;
      if (pt > 0 && qt < kTiny) unsafe[lane] = -1;
      if (bucket || p.divergence != Divergence::forward_kl) {
        const Term<double> term = D::template at<Double>(pt, qt, log_pt - std::log(qt), p.beta);
        value += term.value, sum += term.slope, entropy -= pt > 0 ? pt * log_pt : 0;
        outside_slope = qt > 0 ? term.slope / qt : 0;
      }
    }
    if (!is_mass(mass, p.tail_mode)) value = __builtin_nan("");
    // The sum of all slopes is subtracted from each. With all q summing to one, the bucket's less that sum is a sum over the
    // named classes: digits are kept where nearly everything is outside.
    const double outside_less_sum = outside_slope * named_q - slopes;
    if (invalid[lane]) value = __builtin_nan("");
    divergence[lane] = float(value), outside[lane] = value != value ? __builtin_nanf("") : float(outside_less_sum);
    mixture_entropy[lane] = float(entropy);
    for (int64_t e = 0; e < entries; ++e) {
      const double qe = entry_q[lane * entries + e];
      if (qe >= 0) entry_slope[lane * entries + e] = scale[lane] * (entry_slope[lane * entries + e] - qe * sum);
    }
  }
  if (!across) outside = S::all(outside[0]);
  if (p.gradient)
    each_range([&, this](Part&, int64_t begin, int64_t end) {
      each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
        const vec factor = q.factor(block) * scale * outside;
        write(block, first, n, [&](int64_t) { return [&](int64_t i) ALWAYS_INLINE_LAMBDA { return S::load(e_q + i * S::lanes) * factor; }; });
      });
    });
  finish(divergence);
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
