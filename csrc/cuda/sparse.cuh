// A row whose targets name only some classes: all others together are one class more, "the bucket".
//
// All classes outside share one factor, (slope of the bucket / q of the bucket - R), so the gradient is one sweep of the
// student. The bucket's q is the sum of the rest, never 1 minus the named: at a small tail that difference has no digits.
// Named classes are found by a bit for each class, and then in a small table.
#pragma once
#include "row.cuh"

namespace ensdistill::cuda {

// In a block's shared memory.
template <class Real>
struct NamedClasses {
  uint32_t* bits;
  int* key;
  Real* slope;
  int size;  // of the table, a power of two above the number of entries

  static constexpr int kEmpty = -1;

  ENSDISTILL_DEVICE NamedClasses(unsigned char* memory, int64_t classes, int size)
      : bits(reinterpret_cast<uint32_t*>(memory)),
        key(reinterpret_cast<int*>(bits + named_words(classes))),
        slope(reinterpret_cast<Real*>(key + size)),
        size(size) {}

  ENSDISTILL_DEVICE void clear(int64_t classes) const {
    for (int i = int(threadIdx.x); i < named_words(classes); i += int(blockDim.x)) bits[i] = 0;
    for (int i = int(threadIdx.x); i < size; i += int(blockDim.x)) key[i] = kEmpty;
  }
  ENSDISTILL_DEVICE int place(int id) const { return int((uint32_t(id) * 2654435769u) >> 7) & (size - 1); }
  // False for a class that is there already.
  ENSDISTILL_DEVICE bool add(int id) const {
    atomicOr(bits + id / 32, 1u << (id % 32));
    int at = place(id);
    for (;; at = (at + 1) & (size - 1)) {
      const int found = atomicCAS(key + at, kEmpty, id);
      if (found == kEmpty) return true;
      if (found == id) return false;
    }
  }
  ENSDISTILL_DEVICE Real* slope_of(int id) const {
    int at = place(id);
    while (key[at] != id) at = (at + 1) & (size - 1);
    return slope + at;
  }
  ENSDISTILL_DEVICE bool has(int c) const { return bits[c / 32] >> (c % 32) & 1; }
  // Bit j: whether class first + j is named.
  template <int V>
  ENSDISTILL_DEVICE uint32_t mask_of(const Span<V>& span, int first) const {
    if (V > 1 && span.whole(first)) return __funnelshift_r(bits[first / 32], bits[first / 32 + 1], first % 32);
    uint32_t mask = 0;
    for (int j = 0; j < V; ++j)
      if (span.inside(first + j) && has(first + j)) mask |= 1u << j;
    return mask;
  }
};

template <class Panel>
struct SparseRow : RowBase<Panel> {
  using Base = RowBase<Panel>;
  using Real = typename Panel::Real;
  using Base::p, Base::panel, Base::q, Base::scale, Base::row, Base::active;
  static constexpr int V = Panel::V;

  const NamedClasses<Real> named;

  ENSDISTILL_DEVICE SparseRow(const Problem& p, Panel& panel) : Base(p, panel), named(panel.memory + p.index_at, p.classes, p.table_size) {}

  struct Totals {
    double value = 0, slopes = 0, q = 0, entropy = 0;
  };
  struct AddTotals {
    ENSDISTILL_DEVICE Totals operator()(const Totals& a, const Totals& b) const {
      return {a.value + b.value, a.slopes + b.slopes, a.q + b.q, a.entropy + b.entropy};
    }
  };

  ENSDISTILL_DEVICE double log_prob_at(int64_t e) const { return number_at(p.targets.data, p.targets.type, row * p.entries + e); }
  ENSDISTILL_DEVICE Term<double> term(double prob, double prob_q, double log_ratio) const {
    return AnyDivergence{p.divergence}.template at<Math>(prob, prob_q, log_ratio, p.beta);
  }

  // f(e, id, log p) for this thread's entries; padding (log p = -inf) and ids that name no class are passed over.
  template <class F>
  ENSDISTILL_DEVICE void each_entry(const F& f) const {
    if (!active) return;
    for (int64_t e = panel.group.rank; e < p.entries; e += panel.group.size) {
      const int64_t id = p.ids[row * p.entries + e];
      const double log_p = log_prob_at(e);
      if (id >= 0 && id < p.classes && log_p != minus_infinity<double>()) f(e, int(id), log_p);
    }
  }

  // Ids that name no class or one that another entry names: such a row is NaN.
  ENSDISTILL_DEVICE bool index_names() const {
    bool valid = true;
    named.clear(p.classes);
    panel.group.sync();
    each_entry([&](int64_t, int id, double) { valid = named.add(id) && valid; });
    if (active)
      for (int64_t e = panel.group.rank; e < p.entries; e += panel.group.size) {
        const int64_t id = p.ids[row * p.entries + e];
        valid = valid && id >= 0 && id < p.classes;
      }
    panel.group.sync();
    return valid;
  }

  ENSDISTILL_DEVICE void run(int64_t index) {
    this->locate(index);
    panel.open(*this);
    const bool valid = index_names();
    panel.wait_for_student();

    const Real inv_t = Real(1 / p.temperature);
    const Merge<Real> merge{inv_t, this->own_unit()};
    const MergeLanes<Real> across{inv_t, this->own_unit(), this->smoothed()};
    const auto student = panel.student();
    Real total = 0;
    const LogSums<Real> outside = this->template sums<1>(
        [&](int step, Real(*s)[V]) {
          this->template read<1>(student, step, s);
          const int first = panel.span.first(step);
          const uint32_t mask = named.mask_of(panel.span, first);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            if (this->smoothed()) total += this->weighted(first + j, s[0][j]);
            if (mask >> j & 1) s[0][j] = minus_infinity<Real>();
          }
        },
        inv_t, this->own_unit());
    LogSums<Real> mine = LogSums<Real>::nothing();
    mine.total = total;
    double total_p = 0;
    each_entry([&](int64_t, int id, double log_p) {
      const Real s = panel.student_at(id);
      if (s != minus_infinity<Real>()) mine = merge(mine, LogSums<Real>{s, 1, 1, 0});
      total_p += exp(log_p);
    });
    this->know_student(merge(outside, panel.group.meet(mine, LogSums<Real>::nothing(), across)));
    total_p = panel.group.reduce(total_p, 0.0, Add<double>{});
    const double log_total = p.tail_mode == TailMode::renormalize ? log(total_p) : 0.0;

    Totals totals;
    Best<double> best_p = Best<double>::none();
    if (!valid) totals.value = not_a_number<double>();
    each_entry([&](int64_t, int id, double log_p) {
      log_p -= log_total;
      const double log_q = double(q.log_prob(panel.student_at(id))), prob = exp(log_p), prob_q = exp(log_q);
      const Term<double> t = term(prob, prob_q, log_p - log_q);
      *named.slope_of(id) = Real(t.slope);
      totals.value += t.value, totals.slopes += t.slope, totals.q += prob_q;
      totals.entropy -= prob > 0 ? prob * log_p : 0;
      best_p.see(log_p, id);
    });
    int64_t named_here = 0;
    each_entry([&](int64_t, int, double) { ++named_here; });
    totals = panel.group.reduce(totals, Totals{}, AddTotals{});
    const bool bucket = panel.group.reduce(named_here, int64_t(0), Add<int64_t>{}) < p.classes;

    double outside_slope = 0, slopes = totals.slopes;  // the bucket's for each unit of q; the sum of all, the bucket's too
    if (bucket) {
      const double log_pt = p.tail_mode != TailMode::tail ? minus_infinity<double>()
                            : !active                     ? 0.0
                            : p.tail_is_double            ? static_cast<const double*>(p.tail)[row]
                                                          : double(static_cast<const float*>(p.tail)[row]);
      const double log_qt = double((outside.max - q.max) * inv_t + logarithm(outside.sum) - q.log_sum);
      const double pt = exp(log_pt), qt = outside.sum > 0 ? exp(log_qt) : 0;
      const Term<double> t = term(pt, qt, pt > 0 && qt == 0 && !(outside.sum > 0) ? -minus_infinity<double>() : log_pt - log_qt);
      total_p += pt;
      totals.value += t.value, slopes += t.slope, totals.entropy -= pt > 0 ? pt * log_pt : 0;
      outside_slope = qt > 0 ? t.slope / qt : 0;
    }
    if (!is_mass(total_p, p.tail_mode)) totals.value = not_a_number<double>();
    // The sum of all slopes is subtracted from each. With all q summing to one, the bucket's less that sum is a sum over the
    // named classes: digits are kept where nearly everything is outside.
    const double outside_less_sum = totals.value != totals.value ? totals.value : outside_slope * totals.q - totals.slopes;
    panel.group.sync();  // the slopes are there
    if (p.statistics) observe(student, Real(totals.entropy), best_p);
    if (p.gradient) gradient(student, Real(outside_less_sum), Real(slopes));
    this->finish(Real(totals.value));
    panel.close();
    panel.group.sync();  // the next row clears the names
  }

  template <class Reader>
  ENSDISTILL_DEVICE void gradient(const Reader& student, Real outside_less_sum, Real slopes) const {
#pragma unroll 1
    for (int step = 0; step < panel.span.steps; ++step) {
      const int first = panel.span.first(step);
      const uint32_t mask = named.mask_of(panel.span, first);
      Real s[1][V], g[V];
      this->template read<1>(student, step, s);
#pragma unroll
      for (int j = 0; j < V; ++j) g[j] = scale.divergence * exponential(q.log_prob(s[0][j])) * outside_less_sum;
      if (mask << (32 - V) != 0) {
#pragma unroll 1
        for (int j = 0; j < V; ++j) {
          if (!(mask >> j & 1)) continue;
          const Real exact = scale.divergence * (*named.slope_of(first + j) - exponential(q.log_prob(panel.student_at(first + j))) * slopes);
#pragma unroll
          for (int i = 0; i < V; ++i)
            if (i == j) g[i] = exact;
        }
      }
      this->store(step, s[0], g);
    }
  }

  template <class Reader>
  ENSDISTILL_DEVICE void observe(const Reader& student, Real mixture_entropy, Best<double> best_p) const {
    Real entropy = 0;
    Best<Real> best_q = Best<Real>::none();
#pragma unroll 1
    for (int step = 0; step < panel.span.steps; ++step) {
      Real s[1][V];
      this->template read<1>(student, step, s);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (!panel.span.inside(panel.span.first(step) + j)) continue;
        const Real log_q = q.log_prob(s[0][j]), prob_q = exponential(log_q);
        entropy -= prob_q > 0 ? prob_q * log_q : prob_q != prob_q ? prob_q : Real(0);
        best_q.see(s[0][j], panel.span.first(step) + j);
      }
    }
    entropy = panel.group.reduce(entropy, Real(0), Add<Real>{});
    best_q = panel.group.reduce(best_q, Best<Real>::none(), TakeBest<Real>{});
    best_p = panel.group.reduce(best_p, Best<double>::none(), TakeBest<double>{});
    this->put_statistics(entropy, mixture_entropy, best_q.at == best_p.at, not_a_number<Real>());
  }
};

}  // namespace ensdistill::cuda
