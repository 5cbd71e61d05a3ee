// The loss and gradient of a row, or of `lanes` rows side by side. Included once for each instruction set, after simd.h.
//
// Along: vectors run along one row; sums and maxima are reduced over the lanes. Across: for narrow rows, lane r holds row
// r, so nothing is reduced and no lane is wasted on a tail. The arithmetic is the same text for both.
//
// A row is walked in blocks that stay in the first-level cache. Each block is exponentiated against the largest logit seen
// so far, and the block remembers which that was; the correction to the row's true maximum is one factor for each block in
// the last sweep. So every logit comes from memory once, whatever the width of the row.
#define ALWAYS_INLINE_LAMBDA __attribute__((always_inline))

#include "../rowmath.h"
#include "../targets.h"

namespace ensdistill {
namespace ENSDISTILL_ISA {

// exp((x - max) / T) of a row, kept in scratch, with what it takes to turn it into a softmax.
template <class S>
struct Exponentials {
  typename S::real* e;
  typename S::vec* used;  // [blocks] the maximum that a block's exponentials were taken against
  typename S::vec max, sum;
  typename S::real inv_t;

  ALWAYS_INLINE typename S::vec softmax_factor(int64_t block) const { return S::exp((used[block] - max) * inv_t) / sum; }
  ALWAYS_INLINE typename S::vec log_softmax(typename S::vec x) const { return (x - max) * inv_t - S::log(sum); }
};

template <class S, bool Across>
struct Rows {
  using vec = typename S::vec;
  using real = typename S::real;
  static constexpr real kMinusInf = -__builtin_inff();

  static ALWAYS_INLINE vec reduce_max(vec v) {
    if constexpr (Across) return v;
    return S::all(S::lane_max(v));
  }
  static ALWAYS_INLINE vec reduce_sum(vec v) {
    if constexpr (Across) return v;
    return S::all(S::lane_sum(v));
  }

  // `before(block, first, last)` runs ahead of each block, while the memory it frees is still to be overwritten.
  template <class Source, class Before>
  static ALWAYS_INLINE void exponentiate(const Source& source, int64_t vectors, Exponentials<S>& x, const Before& before) {
    x.max = S::all(kMinusInf);
    x.sum = vec{};
    for (int64_t first = 0, block = 0; first < vectors; first += kBlockVectors, ++block) {
      const int64_t last = first + kBlockVectors < vectors ? first + kBlockVectors : vectors;
      before(block, first, last);
      vec block_max = source.load(first, kMinusInf);
      for (int64_t i = first + 1; i < last; ++i) block_max = S::max(block_max, source.load(i, kMinusInf));
      const vec max = S::max(x.max, reduce_max(block_max));
      // A block of masked classes only (all -inf) must give zeros, not exp(-inf + inf).
      const vec shift = max == S::all(kMinusInf) ? vec{} : max;
      vec block_sum{};
      for (int64_t i = first; i < last; ++i) {
        const vec e = S::exp((source.load(i, kMinusInf) - shift) * x.inv_t);
        S::store(x.e + i * S::lanes, e);
        block_sum += e;
      }
      x.sum = x.sum * S::exp((x.max - shift) * x.inv_t) + reduce_sum(block_sum);
      x.max = max;
      x.used[block] = max;
    }
  }

  struct Scratch {
    real *e, *e1, *p, *m;
    vec *e_used, *e1_used, *m_used;
  };

  // student: a source; target(k): the source of member k; sink(i, v): takes the gradient's vector i.
  // label(lane), labelled(lane): the row's hard label, and whether it has one that counts.
  template <class Student, class Target, class Sink>
  static ALWAYS_INLINE vec run(const Problem& problem, const Student& student, const Target& target, const Sink& sink, const int64_t* labels,
                               const Scratch& scratch) {
    const int64_t vectors = Across ? problem.classes : (problem.classes + S::lanes - 1) / S::lanes;
    const real temperature = real(problem.temperature), inv_t = 1 / temperature;
    const real alpha = real(problem.alpha), hard = labels ? 1 - alpha : 0, smoothing = real(problem.label_smoothing);
    const auto nothing = [](int64_t, int64_t, int64_t) {};

    Exponentials<S> q{scratch.e, scratch.e_used, {}, {}, inv_t};
    exponentiate(student, vectors, q, nothing);
    Exponentials<S> q1 = q;
    if (hard > 0 && temperature != 1) {
      q1 = Exponentials<S>{scratch.e1, scratch.e1_used, {}, {}, 1};
      exponentiate(student, vectors, q1, nothing);
    }

    // The mixture: p = weight * softmax(last member) + sum of the members before it, which is folded in block by block while
    // the next member's exponentials overwrite it. A single member, or a mean of logits, needs no sum: its log-probability
    // then comes straight from the logits, exact, so the loss is exactly 0 at the optimum.
    const int64_t members = problem.members_used;
    const bool single = members == 1 || problem.geometric;
    Exponentials<S> member{scratch.m, scratch.m_used, {}, {}, inv_t};
    vec weight = S::all(1);
    if (members == 1) {
      exponentiate(target(0), vectors, member, nothing);
    } else if (problem.geometric) {
      for (int64_t k = 0; k < members; ++k) {
        const auto source = target(k);
        const vec w = S::all(real(problem.weights[k]));
        for (int64_t i = 0; i < vectors; ++i) {
          const vec v = source.load(i, kMinusInf) * w;
          S::store(scratch.p + i * S::lanes, k == 0 ? v : S::load(scratch.p + i * S::lanes) + v);
        }
      }
      exponentiate(Along<S, real>{scratch.p, vectors * S::lanes}, vectors, member, nothing);
    } else {
      for (int64_t k = 0; k < members; ++k) {
        const Exponentials<S> previous = member;
        const auto fold = [&](int64_t block, int64_t first, int64_t last) {
          if (k == 0) return;
          const vec factor = previous.softmax_factor(block) * weight;
          for (int64_t i = first; i < last; ++i) {
            const vec v = S::load(scratch.m + i * S::lanes) * factor;
            S::store(scratch.p + i * S::lanes, k == 1 ? v : S::load(scratch.p + i * S::lanes) + v);
          }
        };
        // `used` of the previous member is read for a block before the next member writes it.
        exponentiate(target(k), vectors, member, fold);
        weight = S::all(real(problem.weights[k]));
      }
    }

    const vec log_sum_q = S::log(q.sum), log_sum_m = S::log(member.sum);
    const vec kl_scale = S::all(alpha * temperature * real(problem.gradient_factor));
    const vec ce_scale = S::all(hard * real(problem.gradient_factor));
    const vec uniform = S::all(smoothing / real(problem.classes));
    vec kl{}, logits_sum{};

    // One sweep of the classes: the loss and the gradient. Instantiated for what a row needs, to keep the loop tight.
    const auto gradient_at = [&](int64_t i, vec fq, vec fm, vec fq1, auto single_, auto hard_) ALWAYS_INLINE_LAMBDA {
      const vec qi = S::load(scratch.e + i * S::lanes) * fq;
      vec p = S::load(scratch.m + i * S::lanes) * fm;
      if constexpr (!single_) p += S::load(scratch.p + i * S::lanes);
      vec g = forward_kl_gradient(qi, p, kl_scale);
      if constexpr (hard_) g += ce_scale * (S::load(q1.e + i * S::lanes) * fq1 - uniform);
      return g;
    };
    const auto sweep = [&](auto single_, auto hard_, auto logits_of_mixture) ALWAYS_INLINE_LAMBDA {
      for (int64_t first = 0, block = 0; first < vectors; first += kBlockVectors, ++block) {
        const int64_t last = first + kBlockVectors < vectors ? first + kBlockVectors : vectors;
        const vec fq = q.softmax_factor(block), fm = member.softmax_factor(block) * weight;
        const vec fq1 = hard_ ? q1.softmax_factor(block) : vec{};
        vec block_kl{};
        for (int64_t i = first; i < last; ++i) {
          const vec s = student.load(i, kMinusInf);
          vec p = S::load(scratch.m + i * S::lanes) * fm;
          vec log_p;
          if constexpr (single_) {
            log_p = (logits_of_mixture.load(i, kMinusInf) - member.max) * inv_t - log_sum_m;
          } else {
            p += S::load(scratch.p + i * S::lanes);
            log_p = S::log(p);
          }
          block_kl += forward_kl_term(p, log_p, (s - q.max) * inv_t - log_sum_q);
          if (problem.gradient) sink(i, gradient_at(i, fq, fm, fq1, single_, hard_));
        }
        kl += block_kl;
        if (hard > 0 && smoothing > 0)
          for (int64_t i = first; i < last; ++i) logits_sum += student.load(i, 0);
      }
    };
    constexpr std::true_type yes{};
    constexpr std::false_type no{};
    const Along<S, real> mean_logits{scratch.p, vectors * S::lanes};
    if (members == 1) hard > 0 ? sweep(yes, yes, target(0)) : sweep(yes, no, target(0));
    else if (single) hard > 0 ? sweep(yes, yes, mean_logits) : sweep(yes, no, mean_logits);
    else hard > 0 ? sweep(no, yes, mean_logits) : sweep(no, no, mean_logits);

    vec loss = S::all(alpha * temperature * temperature) * reduce_sum(kl);
    if (hard > 0) {
      // The label's own logit and gradient: one element of a row, so picked out rather than compared for in every vector.
      vec label_logit{};
      for (int lane = 0; lane < (Across ? S::lanes : 1); ++lane) {
        const int64_t label = labels[lane];
        const int64_t i = Across ? label : label / S::lanes, within = Across ? lane : label % S::lanes;
        const vec s = student.load(i, kMinusInf);
        if constexpr (Across) lane_set(label_logit, lane, lane_get(s, lane));
        else label_logit = S::all(lane_get(s, within));
        if (!problem.gradient) continue;
        const int64_t block = i / kBlockVectors;
        const vec fq = q.softmax_factor(block), fm = member.softmax_factor(block) * weight, fq1 = q1.softmax_factor(block);
        vec g = single ? gradient_at(i, fq, fm, fq1, yes, yes) : gradient_at(i, fq, fm, fq1, no, yes);
        if constexpr (Across) g = sink.at(i);  // other rows' labels in this vector are already in
        lane_set(g, within, lane_get(g, within) - hard * (1 - smoothing) * real(problem.gradient_factor));
        sink(i, g);
      }
      const vec mean_logit = reduce_sum(logits_sum) / S::all(real(problem.classes));
      loss += S::all(hard) * cross_entropy(q1.max + S::log(q1.sum), label_logit, mean_logit, S::all(smoothing));
    }
    return loss;
  }

  static ALWAYS_INLINE real lane_get(const vec& v, int64_t lane) {
    if constexpr (S::lanes == 1) return v;
    else return v[lane];
  }
  static ALWAYS_INLINE void lane_set(vec& v, int64_t lane, real x) {
    if constexpr (S::lanes == 1) v = x;
    else v[lane] = x;
  }
};

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
