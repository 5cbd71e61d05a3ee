// A row whose targets name every class: K members' logits, codes, log-probabilities or probabilities.
//
// First sweep, over the student and each member: maximum and sum of exponentials together. Last sweep: loss and gradient.
// Resident panels bring each number from device memory once and hold all members, or two in turn and the running sum of the others;
// other panels read again.
#pragma once
#include "row.cuh"

namespace ensdistill::cuda {

template <class Panel, class D>
struct DenseRow : RowBase<Panel> {
  using Base = RowBase<Panel>;
  using Real = typename Panel::Real;
  using Base::p, Base::panel, Base::q, Base::scale, Base::row, Base::active;
  static constexpr int V = Panel::V, U = Panel::U;
  // The forward KL's gradient needs no sum of slopes first: one sweep does.
  static constexpr bool kForward = std::is_same_v<D, ForwardKl>;

  // The last sweep's source of probabilities: the only distribution, or the last member beside the sum of the others.
  Softmax<Real> last;
  bool single = true;
  int members = 1;  // that are used; memory would be read again after every store
  Real last_weight = 1;

  ENSDISTILL_DEVICE DenseRow(const Problem& p, Panel& panel) : Base(p, panel) {}

  ENSDISTILL_DEVICE D divergence() const {
    if constexpr (kForward) return {};
    else return {p.divergence};
  }
  ENSDISTILL_DEVICE Real member_weight(int k) const { return Real(p.weight[k]); }

  // The softmax of the student and of each member.
  ENSDISTILL_DEVICE void look(int64_t index) {
    this->locate(index);
    panel.open(*this);
    members = p.prepared->members_used;
    single = members == 1 || p.geometric;
    if constexpr (Panel::kAtOnce) {
      look_at_once();
    } else {
      const auto student = panel.student();
      panel.wait_for_student();
      this->know_student(this->template sums<U>([&](int step, Real(*x)[V]) { this->template read<U>(student, step, x); }, Real(1 / p.temperature),
                                                this->own_unit(), this->smoothed()));
      last_weight = member_weight(members - 1);
      read_targets();
    }
  }

  ENSDISTILL_DEVICE void run(int64_t index) {
    look(index);
    if constexpr (kForward) {
      this->finish(forward());
    } else {
      const Pair<Real> sums = terms();
      if (p.gradient) gradient(sums.b);
      this->finish(sums.a);
    }
    panel.close();
  }

  // Member k is on chip; the next one is on its way.
  ENSDISTILL_DEVICE void wait_for_member(int k) const {
    if (k + 1 < members) {
      panel.bring_member(k + 1, row);
      async_wait<1>();
    } else {
      async_wait<0>();
    }
  }

  // --- the first sweep over student and targets where all members are on chip: their sums meet once

  ENSDISTILL_DEVICE void look_at_once() {
    const bool by_lanes = panel.group.lanes <= 32, mean = p.geometric && members > 1;
    const int kinds = mean ? 1 : members;  // of distributions beside the student's
    if (!kForward) panel.group.sync();     // the last row's gradient may still be in work
    for (int k = panel.group.rank_here(); k < members; k += panel.group.lanes) {
      MemberNumbers<Real>& m = panel.member_of_row(k);
      m.weight = member_weight(k);
      m.set_decoding(panel.decoding_of(k, row));
    }
    panel.group.sync();

    auto* const slots = reinterpret_cast<LogSums<Real>*>(panel.memory + p.meeting_at);
    const MergeLanes<Real> of_student{Real(1 / p.temperature), this->own_unit(), this->smoothed()};
    const MergeLanes<Real> of_target{Real(1 / p.target_temperature()), false, false};
    const auto put = [&](int i, const LogSums<Real>& s) {
      if (!by_lanes) panel.group.post(slots, i, s);
      else if (panel.group.first_here()) keep_sums(i - 1, s);
    };

    panel.wait_for_student();
    const auto student = panel.student();
    LogSums<Real> s = this->template own_sums<U>([&](int step, Real(*x)[V]) { this->template read<U>(student, step, x); }, of_student.inv_t,
                                                 of_student.with_unit, of_student.with_total);
    s = of_student(s, by_lanes ? panel.group.lanes : 32);
    if (!by_lanes) panel.group.post(slots, 0, s);
#pragma unroll 1
    for (int k = 0; k < members; ++k) {
      wait_for_member(k);
      if (mean) continue;
      const auto shelf = panel.own_shelf_of(k);
      put(1 + k, of_target(this->template own_sums<U>([&](int step, Real(*x)[V]) { this->template read<U>(shelf, step, x); }, of_target.inv_t),
                           by_lanes ? panel.group.lanes : 32));
    }
    if (mean)
      put(1, of_target(this->template own_sums<1>([&](int step, Real(*x)[V]) { read_mean(step, x); }, of_target.inv_t),
                       by_lanes ? panel.group.lanes : 32));

    if (by_lanes) {
      panel.group.sync();
    } else {
      panel.group.meet_at_once(
          slots, 1 + kinds,
          [&](int i, int n, const auto& at) {
            const bool own = i == 0;
            return MergeLanes<Real>{own ? of_student.inv_t : of_target.inv_t, own && of_student.with_unit, own && of_student.with_total}.in_turn(n,
                                                                                                                                                 at);
          },
          [&](int i, const LogSums<Real>& all) {
            if (i == 0) slots[0] = all;
            else keep_sums(i - 1, all);
          });
      s = slots[0];
    }
    this->know_student(s);
    last.max = panel.member_of_row(0).max, last.inv_t = of_target.inv_t, last.log_sum = panel.member_of_row(0).log_sum;
  }
  ENSDISTILL_DEVICE void keep_sums(int k, const LogSums<Real>& s) const {
    Softmax<Real> softmax(s.max, Real(1 / p.target_temperature()), s.sum);
    if (!p.geometric || members == 1) softmax = checked(softmax);  // a geometric mean of probabilities need not sum to one
    panel.member_of_row(k).max = softmax.max, panel.member_of_row(k).log_sum = softmax.log_sum;
  }

  // --- the first sweep over the targets where they come in turn

  template <int Count, class Reader>
  ENSDISTILL_DEVICE Softmax<Real> softmax_of(const Reader& reader) const {
    const Real inv_t = Real(1 / p.target_temperature());
    const auto s = this->template sums<Count>([&](int step, Real(*x)[V]) { this->template read<Count>(reader, step, x); }, inv_t);
    return Softmax<Real>(s.max, inv_t, s.sum);
  }
  template <int Count, class Reader>
  ENSDISTILL_DEVICE Softmax<Real> softmax_of_member(const Reader& reader) const {
    return checked(softmax_of<Count>(reader));
  }
  ENSDISTILL_DEVICE Softmax<Real> checked(Softmax<Real> softmax) const {
    // Of probabilities, the sum itself: one that is far from 1 belongs to no distribution.
    const Real sum = exponential(softmax.log_sum_exp());
    if (p.kind == Kind::probs && !is_mass(sum, TailMode::tail)) softmax.log_sum = not_a_number<Real>();
    return softmax;
  }

  ENSDISTILL_DEVICE void read_targets() {
    if constexpr (Panel::kResident) {
#pragma unroll 1
      for (int k = 0; k < members; ++k) {
        wait_for_member(k);
        const auto shelf = panel.shelf_of(k, row);
        if (p.geometric && members > 1) {
          add_to_sum(k, [&](const Real* z, int j) { return member_weight(k) * z[j]; }, shelf);
          continue;
        }
        last = softmax_of_member<U>(shelf);
        panel.keep_softmax(k, last);
        if (k + 1 < members) add_to_sum(k, [&](const Real* z, int j) { return member_weight(k) * power(last.log_power(z[j])); }, shelf);
      }
      if (p.geometric && members > 1) last = softmax_of<1>(panel.sum());
    } else if (p.geometric && members > 1) {
      const Real inv_t = Real(1 / p.target_temperature());
      const auto s = this->template sums<1>([&](int step, Real(*x)[V]) { read_mean(step, x); }, inv_t);
      last = Softmax<Real>(s.max, inv_t, s.sum);
    } else {
#pragma unroll 1
      for (int k = 0; k < members; ++k) {
        last = softmax_of_member<U>(panel.member(k, row));
        panel.keep_softmax(k, last);
      }
    }
    panel.group.sync();
  }

  template <class Value, class Reader>
  ENSDISTILL_DEVICE void add_to_sum(int k, const Value& value, const Reader& reader) const {
    const auto sums = panel.sum();
#pragma unroll 1
    for (int step = 0; step < panel.span.steps; ++step) {
      Real z[1][V], sum[1][V] = {};
      this->template read<1>(reader, step, z);
      if (k > 0) sums.get_numbers(step, sum[0]);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[0][j] += value(z[0], j);
      sums.put_numbers(step, sum[0]);
    }
  }

  // One vector of member k, or of the members' weighted mean, from where all members are.
  ENSDISTILL_DEVICE void read_member(int k, int step, Real (*z)[V]) const {
    if constexpr (Panel::kAtOnce) this->template read<1>(panel.own_shelf_of(k), step, z);
    else this->template read<1>(panel.member(k, row), step, z);
  }
  ENSDISTILL_DEVICE Real near_weight(int k) const {
    if constexpr (Panel::kAtOnce) return panel.member_of_row(k).weight;
    else return member_weight(k);
  }
  ENSDISTILL_DEVICE void read_mean(int step, Real (*x)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) x[0][j] = 0;
#pragma unroll 1
    for (int k = 0; k < members; ++k) {
      Real z[1][V];
      read_member(k, step, z);
#pragma unroll
      for (int j = 0; j < V; ++j) x[0][j] += near_weight(k) * z[0][j];
    }
  }

  // --- the mixture of a vector, and its logarithms: for the forward KL those that power() takes

  ENSDISTILL_DEVICE void mixture(int step, Real* prob, Real* log_prob) const {
    Real z[1][V];
    if constexpr (Panel::kResident && !Panel::kAtOnce) {
      if (p.geometric && members > 1) this->template read<1>(panel.sum(), step, z);
      else this->template read<1>(panel.shelf_of(members - 1, row), step, z);
      if (single) return from_logits(z[0], prob, log_prob);
      panel.sum().get_numbers(step, prob);
#pragma unroll
      for (int j = 0; j < V; ++j) prob[j] += last_weight * power(last.log_power(z[0][j]));
    } else {
      if (single) {
        if (p.geometric && members > 1) read_mean(step, z);
        else read_member(0, step, z);
        return from_logits(z[0], prob, log_prob);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) prob[j] = 0;
#pragma unroll 1
      for (int k = 0; k < members; ++k) {
        read_member(k, step, z);
        const Softmax<Real> member = panel.softmax(k, last.inv_t);
#pragma unroll
        for (int j = 0; j < V; ++j) prob[j] += near_weight(k) * power(member.log_power(z[0][j]));
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) log_prob[j] = kForward ? power_log(prob[j]) : logarithm(prob[j]);
    if constexpr (!kForward) {
      // Under a logarithm alone, probabilities without digits left in a float still matter. Rolled, because it is rare.
      if (!p.exact_logs) return;
#pragma unroll 1
      for (int j = 0; j < V; ++j) {
        const int c = panel.span.first(step) + j;
        if (!panel.span.inside(c) || !(chosen(prob, j) < Real(1e-37))) continue;
        const Real exact = log_of_little(c);
#pragma unroll
        for (int i = 0; i < V; ++i)
          if (i == j) log_prob[i] = exact;
      }
    }
  }
  // An element of an array in registers, which have no addresses.
  static ENSDISTILL_DEVICE Real chosen(const Real* x, int j) {
    Real found = x[0];
#pragma unroll
    for (int i = 1; i < V; ++i) found = i == j ? x[i] : found;
    return found;
  }
  // Exact log-probabilities, made as the student's are: the loss is 0 where they agree.
  ENSDISTILL_DEVICE void from_logits(const Real* z, Real* prob, Real* log_prob) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      log_prob[j] = kForward ? last.log_power(z[j]) : last.log_prob(z[j]);
      prob[j] = kForward ? power(log_prob[j]) : exponential(log_prob[j]);
    }
  }
  ENSDISTILL_DEVICE Real log_of_little(int c) const {
    Real max = minus_infinity<Real>(), sum = 0;
#pragma unroll 1
    for (int k = 0; k < members; ++k) {
      const Real x = panel.softmax(k, last.inv_t).log_prob(panel.member_at(k, row, c)) + logarithm(member_weight(k));
      const Real next = larger(max, x), against = reference_of(next);
      sum = sum * exponential(max - against) + exponential(x - against);
      max = next;
    }
    return max + logarithm(sum);
  }

  // --- the last sweep

  template <class Each>
  ENSDISTILL_DEVICE void each_step(const Each& each) const {
    const auto student = panel.student();
#pragma unroll 1
    for (int step = 0; step < panel.span.steps; ++step) {
      Real s[1][V], prob[V], log_prob[V];
      this->template read<1>(student, step, s);
      mixture(step, prob, log_prob);
      each(step, s[0], prob, log_prob);
    }
  }

  ENSDISTILL_DEVICE Real forward() const {
    Real value = 0;
    each_step([&](int step, const Real* s, const Real* prob, const Real* log_prob) {
      Real g[V];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Real log_q = q.log_power(s[j]), log_ratio = log_prob[j] - log_q;
        if (prob[j] != 0) value += prob[j] * log_ratio;  // no mass adds nothing, also where the ratio is infinite; a NaN stays visible
        g[j] = forward_kl_gradient(power(log_q), prob[j], scale.divergence);
      }
      if (p.gradient) this->store(step, s, g);
    });
    return natural(panel.group.reduce(value, Real(0), Add<Real>{}));
  }

  // Elements outside the row have neither p nor q, so they add nothing.
  ENSDISTILL_DEVICE Term<Real> term(Real s, Real prob, Real log_prob, Real* prob_q) const {
    const Real log_q = q.log_prob(s);
    *prob_q = exponential(log_q);
    return divergence().template at<Math>(prob, *prob_q, log_prob - log_q, Real(p.beta));
  }
  ENSDISTILL_DEVICE Pair<Real> terms() const {
    Pair<Real> sums{0, 0};
    each_step([&](int, const Real* s, const Real* prob, const Real* log_prob) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        Real prob_q;
        const Term<Real> t = term(s[j], prob[j], log_prob[j], &prob_q);
        sums.a += t.value, sums.b += t.slope;
      }
    });
    return panel.group.reduce(sums, Pair<Real>{0, 0}, AddPairs<Real>{});
  }
  ENSDISTILL_DEVICE void gradient(Real slopes) const {
    each_step([&](int step, const Real* s, const Real* prob, const Real* log_prob) {
      Real g[V];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        Real prob_q;
        const Term<Real> t = term(s[j], prob[j], log_prob[j], &prob_q);
        g[j] = scale.divergence * (t.slope - prob_q * slopes);
      }
      this->store(step, s, g);
    });
  }
};

}  // namespace ensdistill::cuda
