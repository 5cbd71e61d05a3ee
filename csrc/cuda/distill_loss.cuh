// distill_loss on the GPU, free of torch: loss and gradient of a row by a group of threads. The arithmetic is rowmath.h's;
// this file says who reads what, and when.
//
// A row is cut into 16-byte vectors, and each thread of the row's group owns every size-th of them in all sweeps. So what a
// thread keeps of its vectors (in its own column of shared memory) needs no barrier and meets no bank conflict; the group
// meets only in reductions. Sums are reduced in a fixed order: the same input gives the same bits.
//
// First sweep, over the student and each member: maximum and sum of exponentials together. Last sweep: loss and gradient.
// Resident rows come from device memory once; wider ones are read again in the last sweep.
#pragma once
#include <type_traits>

#include "primitives.cuh"

namespace ensdistill::cuda {

// Made on the device, so that nobody waits for values: how many rows count, and the members that do.
struct Prepared {
  unsigned long long counted;  // rows whose label is not ignore_index
  int members_used;
  int valid;  // 0: a weight is negative or not finite, or they sum to 0
};

struct Problem {
  int64_t rows;
  int classes, steps;  // steps: vectors of a row that one thread walks, at most

  const void* student;  // [N, C], unit stride in C
  int64_t student_stride;
  const void* targets;  // [K, N, C], unit stride in C
  int64_t target_member_stride, target_row_stride;
  Element student_type, target_type;
  const float* scale;   // [K, N], for u8 only
  const float* offset;  // [K, N], for u8 only
  int64_t scale_member_stride, scale_row_stride, offset_member_stride, offset_row_stride;

  const Prepared* prepared;
  const int* member;     // [members_used] those with a weight above zero
  const double* weight;  // [members_used] normalised to sum to one
  bool geometric;        // average logits, not probabilities
  bool mean;

  const int64_t* labels;  // [N], or null
  int64_t ignore_index;
  double temperature, alpha, label_smoothing;

  void* gradient;  // [N, C] contiguous, the student's type, or null
  void* row_loss;  // [N] float, or double in the double-precision plan
};

template <class R>
ENSDISTILL_DEVICE R row_factor(const Problem& p) {
  return p.mean ? R(1.0 / double(p.prepared->counted > 0 ? p.prepared->counted : 1)) : R(1);
}

// --- sources: one row of logits, loaded a vector at a time and decoded later

template <class T, int V>
struct Source {
  const T* row;
  bool aligned;
  float step = 1, offset = 0, zero_value = 0;  // of codes

  ENSDISTILL_DEVICE Source(const void* base, Element, int64_t start, const Span<V>& span) : row(static_cast<const T*>(base) + start) {
    constexpr unsigned width = V * sizeof(T) < 16 ? V * sizeof(T) : 16;
    aligned = (reinterpret_cast<uintptr_t>(row) - unsigned(span.shift) * sizeof(T)) % width == 0;
  }
  ENSDISTILL_DEVICE Packed<T, V> load(const Span<V>& span, int v) const {
    const int first = span.first(v);
    Packed<T, V> packed;
    if (aligned && span.whole(first)) packed.load(row + first);
    else packed.load_elements(row, first, span);
    return packed;
  }
  ENSDISTILL_DEVICE float decode(const Packed<T, V>& packed, int j) const { return value(packed.at(j)); }
  ENSDISTILL_DEVICE float element(int i) const { return value(Packed<T, V>::decode_bits(Packed<T, V>::bits(row + i))); }
  ENSDISTILL_DEVICE float value(float x) const {
    if constexpr (std::is_same_v<T, uint8_t>) return ensdistill::decode(x, step, offset, zero_value);
    return x;
  }
};

template <>
struct Source<Any, 1> {
  const void* base;
  Element type;
  int64_t start;
  double step = 1, offset = 0, zero_value = 0;

  ENSDISTILL_DEVICE Source(const void* base, Element type, int64_t start, const Span<1>&) : base(base), type(type), start(start) {}
  ENSDISTILL_DEVICE double load(const Span<1>& span, int v) const { return v < span.classes ? element(v) : 0; }
  ENSDISTILL_DEVICE double decode(double x, int) const { return x; }
  ENSDISTILL_DEVICE double element(int c) const {
    const int64_t i = start + c;
    switch (type) {
      case Element::f64: return static_cast<const double*>(base)[i];
      case Element::f32: return static_cast<const float*>(base)[i];
      case Element::bf16: return __bfloat162float(static_cast<const Bf16*>(base)[i]);
      case Element::f16: return __half2float(static_cast<const F16*>(base)[i]);
      default: return ensdistill::decode(double(static_cast<const uint8_t*>(base)[i]), step, offset, zero_value);
    }
  }
};

// The type of the targets becomes static here, within a kernel: kernels for each pair of types would be many.
template <class Student, class F>
ENSDISTILL_DEVICE void with_target(Element type, const F& f) {
  if constexpr (std::is_same_v<Student, Any>) {
    f(Any{});
  } else {
    switch (type) {
      case Element::f32: return f(float{});
      case Element::bf16: return f(Bf16{});
      case Element::f16: return f(F16{});
      default: return f(uint8_t{});
    }
  }
}

template <class R>
struct Softmax {
  R max, inv_t, log_sum;
  ENSDISTILL_DEVICE R log_prob(R x) const { return (x - max) * inv_t - log_sum; }
};

template <class R>
struct Statistics {
  Softmax<R> softmax;
  R unit_log_sum;  // at T = 1
  R total;         // of the logits
};

// --- one row

template <class Student, class Group, bool kResident>
struct Row {
  using Real = typename Traits<Student>::Real;
  static constexpr int V = Traits<Student>::vector, U = Traits<Student>::batch;

  const Problem& p;
  Group& group;
  void* memory;
  int64_t row;
  Span<V> span;
  int vectors;  // 0 for a row that doesn't count: its threads still come to the reductions

  // A thread's own column of the block's shared memory: shelf 0 the student, 1 the last member, 2 the members before it.
  ENSDISTILL_DEVICE float4* shelf(int which, int step) const {
    return reinterpret_cast<float4*>(static_cast<char*>(memory) + kReductionBytes) + size_t(which * p.steps + step) * (V / 4) * blockDim.x +
           threadIdx.x;
  }
  ENSDISTILL_DEVICE void put(int which, int step, const Real* x) const {
#pragma unroll
    for (int i = 0; i < V / 4; ++i) shelf(which, step)[i * blockDim.x] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  }
  ENSDISTILL_DEVICE void get(int which, int step, Real* x) const {
#pragma unroll
    for (int i = 0; i < V / 4; ++i) {
      const float4 f = shelf(which, step)[i * blockDim.x];
      x[4 * i] = f.x, x[4 * i + 1] = f.y, x[4 * i + 2] = f.z, x[4 * i + 3] = f.w;
    }
  }
  // Rows that are read twice keep each member's maximum and log-sum instead.
  ENSDISTILL_DEVICE Real* member_softmax(int k) const { return reinterpret_cast<Real*>(static_cast<char*>(memory) + kReductionBytes) + 2 * k; }

  template <class T>
  ENSDISTILL_DEVICE Source<T, V> target(int k) const {
    const int64_t member = p.member[k];
    Source<T, V> source(p.targets, p.target_type, member * p.target_member_stride + row * p.target_row_stride, span);
    if constexpr (std::is_same_v<T, Any> || std::is_same_v<T, uint8_t>) {
      if (!p.scale) return source;
      const AffineCodes<Real> map(p.scale[member * p.scale_member_stride + row * p.scale_row_stride],
                                  p.offset[member * p.offset_member_stride + row * p.offset_row_stride]);
      source.step = map.step, source.offset = map.offset, source.zero_value = map.zero_value;
    }
    return source;
  }

  // Elements of a vector that lie outside the row become -inf, which no softmax sees.
  ENSDISTILL_DEVICE void mask(int v, Real* x) const {
    const int first = span.first(v);
    if (span.whole(first)) return;
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (!span.inside(first + j)) x[j] = minus_infinity<Real>();
  }

  // The vectors v, v + size, ...: all loads are under way before the first is decoded.
  template <int Count, class T>
  ENSDISTILL_DEVICE void read(const Source<T, V>& source, int v, Real (*x)[V]) const {
    decltype(source.load(span, v)) packed[Count];
#pragma unroll
    for (int u = 0; u < Count; ++u) packed[u] = source.load(span, v + u * group.size);
#pragma unroll
    for (int u = 0; u < Count; ++u) {
#pragma unroll
      for (int j = 0; j < V; ++j) x[u][j] = source.decode(packed[u], j);
      mask(v + u * group.size, x[u]);
    }
  }
  // One vector of member k. The targets' type is looked at each time: more branches than in the first sweep, far less code.
  ENSDISTILL_DEVICE void read_member(int k, int v, Real (*z)[V]) const {
    with_target<Student>(p.target_type, [&](auto type) { read<1>(target<decltype(type)>(k), v, z); });
  }
  // The vector v of the members' weighted mean.
  ENSDISTILL_DEVICE void read_mean(int v, Real (*x)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) x[0][j] = 0;
#pragma unroll 1
    for (int k = 0; k < p.prepared->members_used; ++k) {
      Real z[1][V];
      read_member(k, v, z);
      const Real weight = Real(p.weight[k]);
#pragma unroll
      for (int j = 0; j < V; ++j) x[0][j] += weight * z[0][j];
    }
  }

  // The first sweep, over what read_batch(v, x) delivers, `Count` vectors at a time. Exponentials are taken against the largest logit this thread has
  // seen, and the sum is rescaled once for each batch.
  template <int Count, class ReadBatch>
  ENSDISTILL_DEVICE Statistics<Real> statistics(const ReadBatch& read_batch, int keep_on, bool unit, bool with_total) const {
    const Real inv_t = Real(1) / Real(p.temperature), nothing = minus_infinity<Real>();
    Real max = nothing, sum = 0, unit_sum = 0, total = 0;
#pragma unroll 1
    for (int v = group.rank, step = 0; v < vectors; v += Count * group.size, step += Count) {
      Real x[Count][V];
      read_batch(v, x);
      Real next = max;
#pragma unroll
      for (int u = 0; u < Count; ++u)
#pragma unroll
        for (int j = 0; j < V; ++j) next = Max{}(next, x[u][j]);
      // Masked classes only, so far: they must give zeros, not exp(-inf + inf).
      const Real against = next == nothing ? Real(0) : next;
      sum *= exponential((max - against) * inv_t);
#pragma unroll
      for (int u = 0; u < Count; ++u) {
#pragma unroll
        for (int j = 0; j < V; ++j) sum += exponential((x[u][j] - against) * inv_t);
        if constexpr (kResident)
          if (v + u * group.size < vectors) put(keep_on, step + u, x[u]);
      }
      if (unit) {
        unit_sum *= exponential(max - against);
#pragma unroll
        for (int u = 0; u < Count; ++u)
#pragma unroll
          for (int j = 0; j < V; ++j) unit_sum += exponential(x[u][j] - against);
      }
      if (with_total) {
#pragma unroll
        for (int u = 0; u < Count; ++u)
#pragma unroll
          for (int j = 0; j < V; ++j)
            if (span.inside(span.first(v + u * group.size) + j)) total += x[u][j];
      }
      max = next;
    }
    Statistics<Real> s;
    s.softmax.max = group.reduce(max, nothing, Max{});
    s.softmax.inv_t = inv_t;
    const Real against = s.softmax.max == nothing ? Real(0) : s.softmax.max;
    s.softmax.log_sum = logarithm(group.reduce(sum * exponential((max - against) * inv_t), Real(0), Sum{}));
    s.unit_log_sum = unit ? logarithm(group.reduce(unit_sum * exponential(max - against), Real(0), Sum{})) : s.softmax.log_sum;
    s.total = with_total ? group.reduce(total, Real(0), Sum{}) : Real(0);
    return s;
  }
  template <class T>
  ENSDISTILL_DEVICE Statistics<Real> statistics_of(const Source<T, V>& source, int keep_on, bool unit = false, bool with_total = false) const {
    return statistics<U>([&](int v, Real(*x)[V]) { read<U>(source, v, x); }, keep_on, unit, with_total);
  }

  // The first sweep over the targets. Returns the softmax of what is on shelf 1 (or is read again): the mean of logits, or
  // the last member, of which the mixture takes that member's weight.
  ENSDISTILL_DEVICE Softmax<Real> read_targets() const {
    const int members = p.prepared->members_used;
    Softmax<Real> last;
    if (p.geometric && members > 1) {
      last = statistics<1>([&](int v, Real(*x)[V]) { read_mean(v, x); }, 1, false, false).softmax;
    } else {
      with_target<Student>(p.target_type, [&](auto type) {
#pragma unroll 1
        for (int k = 0; k < members; ++k) {
          last = statistics_of(target<decltype(type)>(k), 1).softmax;
          if constexpr (kResident) {
            if (k + 1 < members) add_to_sum(last, Real(p.weight[k]), k == 0);
          } else if (group.rank == 0) {
            member_softmax(k)[0] = last.max;
            member_softmax(k)[1] = last.log_sum;
          }
        }
      });
    }
    if constexpr (!kResident) __syncthreads();
    return last;
  }

  ENSDISTILL_DEVICE void add_to_sum(const Softmax<Real>& member, Real weight, bool first) const {
#pragma unroll 1
    for (int v = group.rank, step = 0; v < vectors; v += group.size, ++step) {
      Real z[V], sum[V] = {};
      get(1, step, z);
      if (!first) get(2, step, sum);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += weight * exponential(member.log_prob(z[j]));
      put(2, step, sum);
    }
  }

  // The mixture of vector v, from the shelves.
  ENSDISTILL_DEVICE void mixture_kept(int step, const Softmax<Real>& last, bool single, Real weight, Real* prob, Real* log_prob) const {
    Real z[V];
    get(1, step, z);
    if (single) return from_logits(last, z, prob, log_prob);
    get(2, step, prob);
#pragma unroll
    for (int j = 0; j < V; ++j) prob[j] += weight * exponential(last.log_prob(z[j])), log_prob[j] = logarithm(prob[j]);
  }
  // The same, read again.
  ENSDISTILL_DEVICE void mixture_again(int v, const Softmax<Real>& last, bool single, Real* prob, Real* log_prob) const {
    Real sum[V] = {};  // of logits or of probabilities
#pragma unroll 1
    for (int k = 0; k < p.prepared->members_used; ++k) {
      Real z[1][V];
      read_member(k, v, z);
      const Real weight = Real(p.weight[k]);
      const Softmax<Real> member{member_softmax(k)[0], last.inv_t, member_softmax(k)[1]};
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += weight * (single ? z[0][j] : exponential(member.log_prob(z[0][j])));
    }
    if (single) return from_logits(last, sum, prob, log_prob);
#pragma unroll
    for (int j = 0; j < V; ++j) prob[j] = sum[j], log_prob[j] = logarithm(prob[j]);
  }
  // Exact log-probabilities, made as the student's are: the loss is 0 where they agree.
  static ENSDISTILL_DEVICE void from_logits(const Softmax<Real>& softmax, const Real* z, Real* prob, Real* log_prob) {
#pragma unroll
    for (int j = 0; j < V; ++j) log_prob[j] = softmax.log_prob(z[j]), prob[j] = exponential(log_prob[j]);
  }

  struct Scales {
    Real kl, hard, label, uniform;  // of q - p, of q1, and what the hard label and each class take off
  };

  // The last sweep, over the student's logits and the mixture as at(v, step, s, prob, log_prob) delivers them. Elements
  // outside the row are -inf for all, so they add nothing.
  template <class At>
  ENSDISTILL_DEVICE Real sweep(const Softmax<Real>& q, const Softmax<Real>& q1, const Scales& scales, int label, const Sink<Student>& sink,
                               const At& at) const {
    Real kl = 0;
#pragma unroll 1
    for (int v = group.rank, step = 0; v < vectors; v += group.size, ++step) {
      Real s[V], prob[V], log_prob[V], g[V];
      at(v, step, s, prob, log_prob);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Real log_q = q.log_prob(s[j]);
        kl += forward_kl_term(prob[j], log_prob[j], log_q);
        g[j] = forward_kl_gradient(exponential(log_q), prob[j], scales.kl);
      }
      if (!p.gradient) continue;
      if (scales.hard > 0) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          g[j] += scales.hard * exponential(q1.log_prob(s[j])) - scales.uniform;
          if (span.first(v) + j == label) g[j] -= scales.label;
        }
      }
      sink.store(span, v, g);
    }
    return group.reduce(kl, Real(0), Sum{});
  }

  ENSDISTILL_DEVICE Row(const Problem& p, Group& group, void* memory, int64_t row) : p(p), group(group), memory(memory), row(row) {}

  ENSDISTILL_DEVICE void run() {
    const bool exists = row < p.rows;
    row = exists ? row : p.rows - 1;  // spare groups of the last block look, but neither read logits nor write
    const int64_t label = p.labels ? p.labels[row] : 0;
    const bool counted = exists && !(p.labels && label == p.ignore_index);
    // Nobody can be told about bad values without waiting for the device: the rows they concern become NaN.
    const bool bad = !p.prepared->valid || (p.labels && (label < 0 || label >= p.classes));

    const int64_t start = row * p.student_stride;
    const Sink<Student> sink(p.gradient, p.student_type, row * p.classes);
    span.classes = p.classes;
    span.shift = 0;
    if constexpr (V > 1) {
      const void* first = p.gradient ? static_cast<const void*>(sink.row) : static_cast<const Student*>(p.student) + start;
      span.shift = int(reinterpret_cast<uintptr_t>(first) % 16 / sizeof(Student));
    }
    vectors = counted ? span.vectors() : 0;

    const Real alpha = Real(p.alpha), temperature = Real(p.temperature), smoothing = Real(p.label_smoothing);
    const Real hard = p.labels ? 1 - alpha : Real(0), factor = row_factor<Real>(p);
    const Source<Student, V> student(p.student, p.student_type, start, span);
    const Statistics<Real> s = statistics_of(student, 0, hard > 0 && temperature != 1, hard > 0 && smoothing > 0);
    const Softmax<Real> q1{s.softmax.max, Real(1), s.unit_log_sum};

    const Softmax<Real> last = read_targets();
    const int members = p.prepared->members_used;
    const bool single = members == 1 || p.geometric;

    Scales scales;
    scales.kl = bad ? not_a_number<Real>() : alpha * temperature * factor;
    scales.hard = hard * factor;
    scales.label = scales.hard * (1 - smoothing);
    scales.uniform = scales.hard * smoothing / Real(p.classes);
    Real kl = 0;
    if constexpr (kResident) {
      const Real weight = Real(p.weight[members - 1]);
      kl = sweep(s.softmax, q1, scales, int(label), sink, [&](int, int step, Real* x, Real* prob, Real* log_prob) {
        get(0, step, x);
        mixture_kept(step, last, single, weight, prob, log_prob);
      });
    } else {
      kl = sweep(s.softmax, q1, scales, int(label), sink, [&](int v, int, Real* x, Real* prob, Real* log_prob) {
        read<1>(student, v, reinterpret_cast<Real(*)[V]>(x));
        mixture_again(v, last, single, prob, log_prob);
      });
    }

    if (!exists) return;
    if (!counted && p.gradient) {
      const Real zeros[V] = {};
      for (int v = group.rank; v < span.vectors(); v += group.size) sink.store(span, v, zeros);
    }
    if (group.rank != 0) return;
    Real loss = alpha * temperature * temperature * kl;
    if (counted && !bad && hard > 0)
      loss += hard * cross_entropy(q1.max + q1.log_sum, Real(student.element(int(label))), Real(1), s.total / Real(p.classes), Real(1), smoothing);
    static_cast<Real*>(p.row_loss)[row] = !counted ? Real(0) : bad ? not_a_number<Real>() : loss;
  }
};

// --- kernels

template <class Student, class Group, bool kResident>
__global__ void __launch_bounds__(kThreadsAtOnce) distill_rows(const __grid_constant__ Problem p, int lanes) {
  extern __shared__ __align__(16) unsigned char memory[];
  Group group(lanes, memory);
  const int64_t rows_per_block = blockDim.x / lanes;
  // All threads of a block turn equally often: the reductions need them.
  for (int64_t first = blockIdx.x * rows_per_block; first < p.rows; first += gridDim.x * rows_per_block)
    Row<Student, Group, kResident>(p, group, memory, first + group.index).run();
}

// Counts rows (whole numbers, so the order of the additions doesn't matter) and normalises the weights. `out` comes zeroed.
static __global__ void prepare(Prepared* out, int* member, double* weight, const double* weights, int members, const int64_t* labels,
                               int64_t ignore_index, int64_t rows) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (labels) {
    int64_t counted = 0;
    for (int64_t n = thread; n < rows; n += int64_t(gridDim.x) * blockDim.x) counted += labels[n] != ignore_index;
    counted = reduce_lanes(counted, 32, Sum{});
    if (threadIdx.x % 32 == 0 && counted > 0) atomicAdd(&out->counted, static_cast<unsigned long long>(counted));
  }
  if (thread != 0) return;
  if (!labels) out->counted = rows;
  double total = 0;
  bool valid = true;
  int used = 0;
  for (int k = 0; k < members; ++k) {
    const double w = weights ? weights[k] : 1.0;
    valid = valid && w >= 0 && w <= 1e300;
    total += w;
    if (w > 0) member[used] = k, weight[used] = w, ++used;
  }
  valid = valid && total > 0;
  if (!valid) used = 1, member[0] = 0, weight[0] = 1;  // something that can be read: the rows become NaN anyway
  if (valid)
    for (int k = 0; k < used; ++k) weight[k] /= total;
  out->members_used = used;
  out->valid = valid;
}

// One block, so that the order is fixed; in double, so that it hardly matters.
template <class Real>
__global__ void __launch_bounds__(kMaxBlockThreads) reduce_rows(const Problem p, Real* loss) {
  __shared__ double slots[kReductionBytes / sizeof(double)];
  Block block(kMaxBlockThreads, slots);
  double sum = 0;
  for (int64_t n = block.rank; n < p.rows; n += block.size) sum += static_cast<const Real*>(p.row_loss)[n];
  sum = block.reduce(sum, 0.0, Sum{});
  if (block.rank == 0) *loss = Real(sum * row_factor<double>(p));
}

}  // namespace ensdistill::cuda
