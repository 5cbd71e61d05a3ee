// The walk of every plan over a row: sums of exponentials over the student, the scales of the gradient's parts, the
// row's loss. A Panel locates the numbers; the arithmetic is rowmath.h's.
#pragma once
#include "memory.cuh"
#include "problem.cuh"

namespace ensdistill::cuda {

// Of numbers x: the largest, sum of exp((x - max) / T), the same at T = 1, and the weighted sum of the numbers.
template <class R>
struct LogSums {
  R max, sum, unit, total;
  static ENSDISTILL_DEVICE LogSums nothing() { return {minus_infinity<R>(), 0, 0, 0}; }
};

// exp(max - ...) with only masked numbers so far must give zeros, not exp(-inf + inf).
template <class R>
ENSDISTILL_DEVICE R reference_of(R max) {
  return max == minus_infinity<R>() ? R(0) : max;
}

template <class R>
struct Merge {
  R inv_t;
  bool with_unit;
  ENSDISTILL_DEVICE LogSums<R> operator()(const LogSums<R>& a, const LogSums<R>& b) const {
    const R max = larger(a.max, b.max), against = reference_of(max);
    LogSums<R> c{max, 0, 0, a.total + b.total};
    c.sum = two_products(a.sum, exponential((a.max - against) * inv_t), b.sum, exponential((b.max - against) * inv_t));
    if (with_unit) c.unit = two_products(a.unit, exponential(a.max - against), b.unit, exponential(b.max - against));
    return c;
  }
};

// Over lanes: first the largest of all, to which each rescales its own sums once; a Merge in each round would take two exponentials a sum.
template <class R>
struct MergeLanes {
  R inv_t;
  bool with_unit, with_total;
  ENSDISTILL_DEVICE LogSums<R> operator()(LogSums<R> mine, int lanes) const {
    const R max = reduce_lanes(mine.max, lanes, [](R a, R b) { return larger(a, b); }), against = reference_of(max);
    LogSums<R> all{max, 0, 0, 0};
    all.sum = reduce_lanes(mine.sum * power((mine.max - against) * power_scale(inv_t)), lanes, Add<R>{});
    if (with_unit) all.unit = reduce_lanes(mine.unit * exponential(mine.max - against), lanes, Add<R>{});
    if (with_total) all.total = reduce_lanes(mine.total, lanes, Add<R>{});
    return all;
  }
  // The same by one thread, of n that at(i) reads.
  template <class At>
  ENSDISTILL_DEVICE LogSums<R> in_turn(int n, const At& at) const {
    LogSums<R> all = LogSums<R>::nothing();
#pragma unroll 1
    for (int i = 0; i < n; ++i) all.max = larger(all.max, at(i).max);
    const R against = reference_of(all.max);
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const LogSums<R> mine = at(i);
      all.sum += mine.sum * power((mine.max - against) * power_scale(inv_t));
      if (with_unit) all.unit += mine.unit * exponential(mine.max - against);
      if (with_total) all.total += mine.total;
    }
    return all;
  }
};

template <class R>
struct Softmax {
  R max = 0, inv_t = 0, log_sum = 0;
  Softmax() = default;
  ENSDISTILL_DEVICE Softmax(R max, R inv_t, R sum) : max(max), inv_t(inv_t), log_sum(logarithm(sum)) {}
  ENSDISTILL_DEVICE R log_prob(R x) const { return (x - max) * inv_t - log_sum; }
  // The same for power(), which saves exponential()'s multiplication.
  ENSDISTILL_DEVICE R log_power(R x) const { return (x - max) * power_scale(inv_t) - power_scale(log_sum); }
  ENSDISTILL_DEVICE R log_sum_exp() const { return max * inv_t + log_sum; }
};

// All that the last sweep needs of a member.
template <class R>
struct MemberNumbers {
  R max, log_sum, weight, unused;
  R step, offset, zero_value, unused_too;
  ENSDISTILL_DEVICE void set_decoding(const Decoding<R>& d) { step = d.step, offset = d.offset, zero_value = d.zero_value; }
};
static_assert(sizeof(MemberNumbers<float>) == kNumbersBytes && sizeof(LogSums<float>) == kSumsBytes, "plan.h");

// A divergence's value and the sum of its slopes; the entropies of student and mixture.
template <class R>
struct Pair {
  R a, b;
};
template <class R>
struct AddPairs {
  ENSDISTILL_DEVICE Pair<R> operator()(const Pair<R>& x, const Pair<R>& y) const { return {x.a + y.a, x.b + y.b}; }
};

// The first class with the largest value.
template <class R>
struct Best {
  R value;
  int at, padding;
  static ENSDISTILL_DEVICE Best none() { return {minus_infinity<R>(), 0x7fffffff, 0}; }
  ENSDISTILL_DEVICE void see(R x, int c) {
    if (x > value || (x == value && c < at)) value = x, at = c;
  }
};
template <class R>
struct TakeBest {
  ENSDISTILL_DEVICE Best<R> operator()(Best<R> a, const Best<R>& b) const {
    a.see(b.value, b.at);
    return a;
  }
};

template <class Panel_>
struct RowBase {
  using Panel = Panel_;
  using Real = typename Panel::Real;
  static constexpr int V = Panel::V;
  static constexpr bool kForward = false;

  const Problem& p;
  Panel& panel;
  int64_t index = 0, row = 0;
  bool exists = false, active = false, bad = false;
  int label = -1;       // -1 where labels have no share in the row
  Softmax<Real> q, q1;  // at T, and at T = 1 where labels or z-loss want it
  Real weighted_total = 0;
  // The gradient is  divergence * (slope - q * R)  +  q1 * softmax(s)  - classes * w  - at_label at the label.
  struct Scales {
    Real divergence, q1, classes, at_label;
  } scale;

  ENSDISTILL_DEVICE RowBase(const Problem& p, Panel& panel) : p(p), panel(panel) {}

  ENSDISTILL_DEVICE double hard_share() const { return p.share / double(p.prepared->labelled > 0 ? p.prepared->labelled : 1); }
  ENSDISTILL_DEVICE bool own_unit() const { return p.hard() || p.z_loss != 0; }
  ENSDISTILL_DEVICE bool smoothed() const { return p.hard() && p.label_smoothing > 0; }
  ENSDISTILL_DEVICE Real class_weight(int c) const { return p.class_weights ? Real(p.class_weights[c]) : Real(1); }

  // Groups beyond the last row look, but neither read logits nor write.
  ENSDISTILL_DEVICE void locate(int64_t at) {
    index = at;
    exists = index < p.rows;
    row = exists ? index : p.rows - 1;
    active = exists && p.active(row);
    const int64_t given = p.labels && active ? p.labels[row] : p.ignore_index;
    const bool known = given != p.ignore_index, outside = given < 0 || given >= p.classes;
    // Bad values cannot be reported without waiting for the device: the rows they concern become NaN.
    bad = !p.prepared->valid || (known && outside) || !(p.sample_weight(row) >= 0);
    label = known && !outside && p.alpha < 1 ? int(given) : -1;
  }

  // `Count` vectors from `step` on, as numbers; all loads are under way before the first is decoded. Numbers outside the
  // row becomes -inf, which no softmax sees.
  template <int Count, class Reader>
  ENSDISTILL_DEVICE void read(const Reader& reader, int step, Real (*x)[V]) const {
    typename Reader::Bits bits[Count];
#pragma unroll
    for (int u = 0; u < Count; ++u)
      if (step + u < panel.span.steps) bits[u] = reader.load(step + u);
#pragma unroll
    for (int u = 0; u < Count; ++u) {
      const int first = panel.span.first(step + u);
      const bool here = step + u < panel.span.steps;
      if (here && panel.span.whole(first)) {  // without a question for each element
#pragma unroll
        for (int j = 0; j < V; ++j) x[u][j] = reader.plain(bits[u], j);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) x[u][j] = here && panel.span.inside(first + j) ? reader.plain(bits[u], j) : minus_infinity<Real>();
      }
      if (reader.takes_log()) {
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (here && panel.span.inside(first + j)) x[u][j] = logarithm(x[u][j]);
      }
    }
  }

  // Sums over the vectors of read_batch(step, x), `Count` vectors at a time.
  template <int Count, class ReadBatch>
  ENSDISTILL_DEVICE LogSums<Real> sums(const ReadBatch& read_batch, Real inv_t, bool unit = false, bool total = false) const {
    return panel.group.meet(own_sums<Count>(read_batch, inv_t, unit, total), LogSums<Real>::nothing(), MergeLanes<Real>{inv_t, unit, total});
  }
  // This thread's. Exponentials are taken against the largest number it has seen, and the sums are rescaled once for each batch.
  template <int Count, class ReadBatch>
  ENSDISTILL_DEVICE LogSums<Real> own_sums(const ReadBatch& read_batch, Real inv_t, bool unit = false, bool total = false) const {
    LogSums<Real> s = LogSums<Real>::nothing();
    const Real scale = power_scale(inv_t);
#pragma unroll 1
    for (int step = 0; step < panel.span.steps; step += Count) {
      Real x[Count][V];
      read_batch(step, x);
      Real next = s.max;
#pragma unroll
      for (int u = 0; u < Count; ++u)
#pragma unroll
        for (int j = 0; j < V; ++j) next = larger(next, x[u][j]);
      const Real against = reference_of(next);
      s.sum *= power((s.max - against) * scale);
#pragma unroll
      for (int u = 0; u < Count; ++u)
#pragma unroll
        for (int j = 0; j < V; ++j) s.sum += power((x[u][j] - against) * scale);
      if (unit) {
        s.unit *= exponential(s.max - against);
#pragma unroll
        for (int u = 0; u < Count; ++u)
#pragma unroll
          for (int j = 0; j < V; ++j) s.unit += exponential(x[u][j] - against);
      }
      if (total) {
#pragma unroll
        for (int u = 0; u < Count; ++u)
#pragma unroll
          for (int j = 0; j < V; ++j)
            if (step + u < panel.span.steps) s.total += weighted(panel.span.first(step + u) + j, x[u][j]);
      }
      s.max = next;
    }
    return s;
  }
  // Classes without weight may be masked.
  ENSDISTILL_DEVICE Real weighted(int c, Real x) const {
    const Real w = panel.span.inside(c) ? class_weight(c) : Real(0);
    return w > 0 ? w * x : Real(0);
  }

  ENSDISTILL_DEVICE void know_student(const LogSums<Real>& s) {
    q = Softmax<Real>(s.max, Real(1 / p.temperature), s.sum);
    q1 = own_unit() ? Softmax<Real>(s.max, Real(1), s.unit) : Softmax<Real>{};
    weighted_total = s.total;
    const double factor = p.factor * p.sample_weight(row), hard = label >= 0 ? factor * hard_share() : 0, smoothing = p.label_smoothing;
    const double label_weight = double(class_weight(label < 0 ? 0 : label)), mean_weight = p.prepared->class_weight_sum / double(p.classes);
    scale.divergence = bad ? not_a_number<Real>() : Real(p.alpha * p.temperature * factor);
    scale.q1 = Real(hard * ((1 - smoothing) * label_weight + smoothing * mean_weight) + 2 * p.z_loss * factor * double(q1.log_sum_exp()));
    scale.classes = Real(hard * smoothing / double(p.classes));
    scale.at_label = Real(hard * (1 - smoothing) * label_weight);
  }

  // Adds to a vector of the divergence's gradient the gradients of labels and z-loss, and stores it.
  ENSDISTILL_DEVICE void store(int step, const Real* s, Real* g) const {
    if (own_unit()) {
      const int first = panel.span.first(step);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        g[j] += scale.q1 * exponential(q1.log_prob(s[j]));
        if (!p.hard()) continue;
        if (scale.classes != 0) g[j] -= scale.classes * (panel.span.inside(first + j) ? class_weight(first + j) : Real(0));
        if (first + j == label) g[j] -= scale.at_label;
      }
    }
    panel.store(step, g);
  }

  // The row's loss, from the divergence's value; zeros for a row that doesn't count.
  ENSDISTILL_DEVICE void finish(Real divergence) const {
    if (!exists) return;
    if (!active && p.gradient) {
      const Real zeros[V] = {};
#pragma unroll 1
      for (int step = 0; step < panel.all_steps; ++step) panel.store(step, zeros);
    }
    if (panel.group.rank != 0) return;
    const Real log_sum_exp = q1.log_sum_exp();
    Real loss = Real(p.alpha * p.temperature * p.temperature) * divergence + Real(p.z_loss) * log_sum_exp * log_sum_exp;
    if (label >= 0)
      loss += Real(hard_share()) * cross_entropy(log_sum_exp, panel.student_at(label), class_weight(label), weighted_total / Real(p.classes),
                                                 Real(p.prepared->class_weight_sum / double(p.classes)), Real(p.label_smoothing));
    put_result(p.row_loss, row, !active ? 0.0 : bad ? double(not_a_number<Real>()) : p.sample_weight(row) * double(loss));
  }
  ENSDISTILL_DEVICE void put_result(void* to, int64_t i, double x) const {
    if (p.doubles) static_cast<double*>(to)[i] = x;
    else static_cast<float*>(to)[i] = float(x);
  }
  ENSDISTILL_DEVICE void put_statistics(Real student_entropy, Real mixture_entropy, bool agree, Real disagreement) const {
    if (!exists || panel.group.rank != 0) return;
    const double value[4] = {double(student_entropy), double(mixture_entropy), agree ? 1.0 : 0.0, double(disagreement)};
    for (int i = 0; i < 4; ++i) put_result(p.statistics, 4 * row + i, active ? value[i] : not_a_number<double>());
  }
};

}  // namespace ensdistill::cuda
