// By-products of a row with dense targets: entropies of student and mixture, whether their best classes agree, how much the
// members disagree. A launch of its own, so that the loss's kernels need no registers for it.
#pragma once
#include "dense.cuh"

namespace ensdistill::cuda {

template <class Panel>
struct ObservedRow : DenseRow<Panel, AnyDivergence> {
  using Base = DenseRow<Panel, AnyDivergence>;
  using Real = typename Panel::Real;
  using Base::p, Base::panel, Base::q, Base::row;
  static constexpr int V = Panel::V;

  using Base::Base;

  ENSDISTILL_DEVICE void run(int64_t index) {
    this->look(index);
    Pair<Real> entropy{0, 0};
    Best<Real> best_q = Best<Real>::none(), best_p = Best<Real>::none();
    this->each_step([&](int step, const Real* s, const Real* prob, const Real* log_prob) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int c = panel.span.first(step) + j;
        const Real log_q = q.log_prob(s[j]);
        entropy.a -= entropy_term(exponential(log_q), log_q), entropy.b -= entropy_term(prob[j], log_prob[j]);
        if (panel.span.inside(c)) best_q.see(s[j], c), best_p.see(prob[j], c);
      }
    });
    entropy = panel.group.reduce(entropy, Pair<Real>{0, 0}, AddPairs<Real>{});
    best_q = panel.group.reduce(best_q, Best<Real>::none(), TakeBest<Real>{});
    best_p = panel.group.reduce(best_p, Best<Real>::none(), TakeBest<Real>{});
    const int members = p.prepared->members_used;
    const Real within = members == 1 ? entropy.b : entropy_of_members(members);
    this->put_statistics(entropy.a, entropy.b, best_q.at == best_p.at, entropy.b - within);
    panel.close();
  }
  static ENSDISTILL_DEVICE Real entropy_term(Real prob, Real log_prob) { return prob > 0 ? prob * log_prob : prob != prob ? prob : Real(0); }

  ENSDISTILL_DEVICE Real entropy_of_members(int members) const {
    Real total = 0;
#pragma unroll 1
    for (int k = 0; k < members; ++k) {
      const auto reader = panel.member(k, row);
      const Softmax<Real> member = this->template softmax_of_member<1>(reader);
      Real entropy = 0;
#pragma unroll 1
      for (int step = 0; step < panel.span.steps; ++step) {
        Real z[1][V];
        this->template read<1>(reader, step, z);
#pragma unroll
        for (int j = 0; j < V; ++j) entropy -= entropy_term(exponential(member.log_prob(z[0][j])), member.log_prob(z[0][j]));
      }
      total += this->member_weight(k) * panel.group.reduce(entropy, Real(0), Add<Real>{});
    }
    return total;
  }
};

}  // namespace ensdistill::cuda
