// Targets that name only some classes: all others together are one class more, the bucket. Included after row_gradient.h.
//
// All classes outside share one factor, (slope of the bucket / q of the bucket - R), so the gradient is one sweep of the
// student's exponentials; the named classes are taken out of it and patched in. The bucket's q is the sum of the rest,
// never 1 minus the named: at a small tail that difference has no digits. Single entries are in double precision.
#include "doubles.h"

namespace ensdistill {
namespace ENSDISTILL_ISA {

struct Double {
  static double log(double x) { return std::log(x); }
};

// Of numbers that aren't negative, nor subnormal.
struct Doubles {
  using Vec = doubles::Vec;
  static ALWAYS_INLINE Vec log(Vec x) { return x > Vec{} ? doubles::log_of_normal(x) : (x == x ? doubles::all(doubles::kMinusInf) : x); }
};

// Eight entries from `e` on; entries behind the last one of a row are `fill`, and aren't written.
ALWAYS_INLINE doubles::Vec load_entries(const double* from, int64_t e, int64_t entries, double fill) {
  doubles::Vec v = doubles::all(fill);
  if (e + doubles::kLanes <= entries) return doubles::load(from + e);
  for (int64_t i = 0; e + i < entries; ++i) v[i] = from[e + i];
  return v;
}
ALWAYS_INLINE void store_entries(double* to, int64_t e, int64_t entries, doubles::Vec v) {
  if (e + doubles::kLanes <= entries) return doubles::store(to + e, v);
  for (int64_t i = 0; e + i < entries; ++i) to[e + i] = v[i];
}

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
  for (int64_t b = 0; b < blocks; ++b) used_m[b] = q.factor(b);  // there is no member to need it
  const auto* factors = reinterpret_cast<const float*>(used_m);
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
      entry_q[lane * entries + e] = double(e_q[at]) * factors[block * S::lanes + at % S::lanes];
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
    double *const qs = entry_q + lane * entries, *const ps = entry_slope + lane * entries;
    using Vec = doubles::Vec;
    const auto log_probs = [&](int64_t e) {
      Vec v = doubles::all(doubles::kMinusInf);
      for (int64_t i = 0; i < doubles::kLanes && e + i < entries; ++i) v[i] = log_prob_at(from + e + i);
      return v;
    };
    Vec totals{};
    int64_t named = 0;
    for (int64_t e = 0; e < entries; e += doubles::kLanes) {
      const Vec qe = load_entries(qs, e, entries, -1), log_p = log_probs(e);
      const auto is_named = qe >= Vec{};
      const Vec exp = log_p > doubles::all(700) ? doubles::all(__builtin_nan("")) : doubles::exp_of_negative(log_p), pe = is_named ? exp : Vec{};
      totals += pe;
      for (int i = 0; i < doubles::kLanes; ++i) named -= is_named[i];
      store_entries(ps, e, entries, pe);
    }
    const double total = doubles::sum(totals);
    const bool renormalized = p.tail_mode == TailMode::renormalize;
    const Vec log_total = doubles::all(renormalized ? std::log(total) : 0), divisor = doubles::all(renormalized ? total : 1);
    Vec entropies{}, values{}, slope_sum{}, named_sum{};
    for (int64_t e = 0; e < entries; e += doubles::kLanes) {
      const Vec found = load_entries(qs, e, entries, -1), log_p = log_probs(e) - log_total;
      const auto is_named = found >= Vec{};
      const Vec qe = is_named ? found : doubles::all(1), pe = load_entries(ps, e, entries, 0) / divisor;
      const Term<Vec> term = D::template at<Doubles>(pe, qe, log_p - Doubles::log(qe), doubles::all(p.beta));
      values += is_named ? term.value : Vec{};
      slope_sum += is_named ? term.slope : Vec{};
      named_sum += is_named ? qe : Vec{};
      const Vec entropy = pe * log_p;
      entropies -= pe > Vec{} ? entropy : Vec{};
      const auto lost = is_named & (pe > Vec{}) & (qe < doubles::all(kTiny));
      for (int i = 0; i < doubles::kLanes; ++i) unsafe[lane] |= int32_t(lost[i]);
      store_entries(ps, e, entries, term.slope);
    }
    double entropy = doubles::sum(entropies), value = doubles::sum(values);
    const double slopes = doubles::sum(slope_sum), named_q = doubles::sum(named_sum);
    if (p.statistics) {
      double best = -__builtin_inf();
      for (int64_t e = 0; e < entries; ++e)
        if (qs[e] >= 0 && log_prob_at(from + e) > best) best = log_prob_at(from + e), mixture_best[lane] = p.ids[from + e];
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
    for (int64_t e = 0; e < entries; ++e) ps[e] = scale[lane] * (ps[e] - qs[e] * sum);  // classes that aren't named are not read
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
