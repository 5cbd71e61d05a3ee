// The multi-label loss and its gradient: a class is its own problem, so a row is read once and only its loss is reduced.
//
// One text for all element types, which are known at run time: a switch for each vector of eight classes costs little, and a kernel for each
// pair of types would take minutes to compile.
#pragma once
#include "../coinmath.h"
#include "../multilabel.h"
#include "group.cuh"
#include "members.cuh"
#include "memory.cuh"
#include "multilabel_launch.h"
#include "problem.cuh"

namespace ensdistill::cuda {

struct CoinMath : Math {
  static ENSDISTILL_DEVICE float log(float x) { return __logf(x); }  // of numbers up to 1/2, or far above 1
  static ENSDISTILL_DEVICE double log(double x) { return ::log(x); }
  static ENSDISTILL_DEVICE float log1p(float x) { return log1pf(x); }
  static ENSDISTILL_DEVICE double log1p(double x) { return ::log1p(x); }
};
ENSDISTILL_DEVICE float magnitude(float x) { return fabsf(x); }
ENSDISTILL_DEVICE double magnitude(double x) { return fabs(x); }
ENSDISTILL_DEVICE float reciprocal(float x) { return __fdividef(1.f, x); }
ENSDISTILL_DEVICE double reciprocal(double x) { return 1 / x; }

ENSDISTILL_DEVICE float float_at(const void* data, Element type, int64_t i) {
  switch (type) {
    case Element::f32: return static_cast<const float*>(data)[i];
    case Element::bf16: return __bfloat162float(static_cast<const Bf16*>(data)[i]);
    case Element::f16: return __half2float(static_cast<const F16*>(data)[i]);
    default: return static_cast<const uint8_t*>(data)[i];
  }
}
ENSDISTILL_DEVICE void put_float_at(void* data, Element type, int64_t i, float x) {
  switch (type) {
    case Element::f32: static_cast<float*>(data)[i] = x; return;
    case Element::bf16: static_cast<Bf16*>(data)[i] = __float2bfloat16_rn(x); return;
    default: static_cast<F16*>(data)[i] = __float2half_rn(x); return;
  }
}

// The classes that a thread has now.
struct Classes {
  int64_t first;
  int apart;    // 1, or the row's threads
  int64_t end;  // of the row
  bool whole;   // an aligned vector

  ENSDISTILL_DEVICE int64_t at(int j) const { return first + int64_t(j) * apart; }
  ENSDISTILL_DEVICE bool inside(int j) const { return at(j) < end; }
};

template <class T, int V>
ENSDISTILL_DEVICE void load_vector(const void* data, int64_t at, float (&x)[V]) {
  Packed<T, V> bits;
  bits.load(static_cast<const T*>(data) + at);
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = bits.at(j);
}
template <class T, int V>
ENSDISTILL_DEVICE void store_vector(void* data, int64_t at, const float (&x)[V]) {
  const auto bits = Packed<T, V>::encode(x);
  auto* to = reinterpret_cast<uint4*>(static_cast<T*>(data) + at);
#pragma unroll
  for (int i = 0; i < int(V * sizeof(T)) / 16; ++i)  // by name: nvcc 13.0 splits an assignment into four
    __stwb(to + i, make_uint4(bits.word[4 * i], bits.word[4 * i + 1], bits.word[4 * i + 2], bits.word[4 * i + 3]));
}

// `row` is the row's start, in elements. Outside of the row comes 0.
template <class Real, int V>
ENSDISTILL_DEVICE void load_classes(const Matrix& m, int64_t row, const Classes& classes, Real (&x)[V]) {
  if constexpr (sizeof(Real) == 4) {
    if (classes.whole) {
      switch (m.type) {
        case Element::f32: return load_vector<float>(m.data, row + classes.first, x);
        case Element::bf16: return load_vector<Bf16>(m.data, row + classes.first, x);
        case Element::f16: return load_vector<F16>(m.data, row + classes.first, x);
        default: return load_vector<uint8_t>(m.data, row + classes.first, x);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    x[j] = 0;
    if (!classes.inside(j)) continue;
    const int64_t i = row + classes.at(j) * m.class_stride;
    if constexpr (sizeof(Real) == 4) x[j] = float_at(m.data, m.type, i);
    else x[j] = number_at(m.data, m.type, i);
  }
}

template <class Real, int V>
ENSDISTILL_DEVICE void store_classes(void* data, const Matrix& m, int64_t row, const Classes& classes, const Real (&x)[V]) {
  if constexpr (sizeof(Real) == 4) {
    if (classes.whole) {
      switch (m.type) {
        case Element::f32: return store_vector<float>(data, row + classes.first, x);
        case Element::bf16: return store_vector<Bf16>(data, row + classes.first, x);
        default: return store_vector<F16>(data, row + classes.first, x);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (!classes.inside(j)) continue;
    const int64_t i = row + classes.at(j) * m.class_stride;
    if constexpr (sizeof(Real) == 4) put_float_at(data, m.type, i, x[j]);
    else put_number_at(data, m.type, i, x[j]);
  }
}

// One thread's part of a row.
template <class Real>
struct MultilabelRow {
  static constexpr int V = kStepOf<Real>;

  const MultilabelProblem& p;
  const int64_t row;
  const Real inv_t, inv_target, of_soft, of_hard;
  const int members;
  double soft = 0, hard = 0;

  ENSDISTILL_DEVICE MultilabelRow(const MultilabelProblem& p, int64_t row, double soft_factor, double hard_factor, Real inv_t, int members)
      : p(p),
        row(row),
        inv_t(inv_t),
        inv_target(p.kind == Kind::logits ? inv_t : Real(1)),
        of_soft(Real(p.sample_weight(row) * soft_factor)),
        of_hard(Real(p.sample_weight(row) * hard_factor)),
        members(members) {}

  ENSDISTILL_DEVICE Real probability_of_log(Real x) const { return exponential(x > 1 ? Real(1) : x); }
  ENSDISTILL_DEVICE Coin<Real> coin_of_stored(Real x) const {
    if (p.kind == Kind::probs) return coin_of_probability(x);
    const Coin<Real> coin = coin_of_probability(probability_of_log(x));
    if constexpr (sizeof(Real) == 8) return {coin.yes, x < 0 ? -expm1(x) : coin.no};
    else return coin;
  }

  // The mixture of some classes.
  ENSDISTILL_DEVICE void mix(const Classes& classes, Coin<Real> (&mixture)[V]) const {
    Real mean[V];
#pragma unroll
    for (int j = 0; j < V; ++j) mixture[j] = {0, 0}, mean[j] = 0;
#pragma unroll 1
    for (int k = 0; k < members; ++k) {
      const int64_t m = p.member[k];
      const Real weight = Real(p.weight[k]);
      Real x[V];
      load_classes(p.targets, m * p.target_member_stride + p.targets.at(row, p.inner), classes, x);
      if (p.targets.type == Element::u8) {
        const AffineCodes<Real> map(p.scale[m * p.scale_member_stride + row * p.scale_row_stride],
                                    p.offset[m * p.offset_member_stride + row * p.offset_row_stride]);
#pragma unroll
        for (int j = 0; j < V; ++j) x[j] = decode(x[j], map.step, map.offset, map.zero_value);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const bool logits = p.kind == Kind::logits;
        if (p.geometric) {
          Real logit = x[j] * inv_target;
          if (!logits) {
            const Coin<Real> coin = coin_of_stored(x[j]);
            logit = (p.kind == Kind::probs ? logarithm(coin.yes) : x[j] > 0 ? Real(0) : x[j]) - logarithm(coin.no);
          }
          mean[j] += weight * logit;
          continue;
        }
        Coin<Real> coin;
        if (logits) {
          const Real e = exponential(-magnitude(x[j]) * inv_target), larger = reciprocal(1 + e), smaller = e * larger;
          coin = {x[j] > 0 ? larger : smaller, x[j] > 0 ? smaller : larger};
        } else {
          coin = coin_of_stored(x[j]);
        }
        mixture[j].yes += weight * coin.yes, mixture[j].no += weight * coin.no;
      }
    }
    if (!p.geometric) return;
#pragma unroll
    for (int j = 0; j < V; ++j) mixture[j] = coin_of(mean[j], exponential(-magnitude(mean[j])));
  }

  // Loss and gradient of some classes; `on` has a bit for each that counts.
  ENSDISTILL_DEVICE void run(const Classes& classes, const Coin<Real> (&mixture)[V], uint32_t on, Real (&gradient)[V]) {
    Real x[V], y[V];
    load_classes(p.student, p.student.at(row, p.inner), classes, x);
    if (p.marked()) load_classes(p.marks, p.marks.at(row, p.inner), classes, y);
    if (p.mask.data) {
      Real m[V];
      load_classes(p.mask, p.mask.at(row, p.inner), classes, m);
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (m[j] == 0) on &= ~(1u << j);
    }
    const bool weighted = p.class_weights || p.positive_weights, own = !p.taught() || p.temperature != 1;
    // Of the logarithms of 1 + e: no factor is above 2.
    float soft_product = 1, hard_product = 1;
    Real soft_sum = 0, hard_sum = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      gradient[j] = 0;
      const Real w = weighted && classes.inside(j) ? Real(p.class_weight(classes.at(j))) : Real(1);
      if (!(on >> j & 1) || !classes.inside(j) || !(w > 0)) continue;
      const Real size = magnitude(x[j]);
      Real e = 0, r = 1;
      if (p.taught()) {
        e = exponential(-size * inv_t), r = reciprocal(1 + e);
        CoinTerm<Real> term;
        if constexpr (sizeof(Real) == 8) {
          const Coin<Real> q = coin_of(x[j], e);
          term = {coin_kl<CoinMath>(mixture[j], q, x[j] * inv_t, e, Real(1e-300)), coin_difference(q, mixture[j], x[j])};
        } else {
          term = kl_term<CoinMath>(mixture[j], x[j], size * inv_t, e, r);
          if (weighted) term.value += CoinMath::log1p(e);
          else soft_product *= 1 + e;
        }
        soft_sum += w * term.value, gradient[j] = w * of_soft * term.slope;
      }
      if (!p.marked() || y[j] == Real(p.unknown())) continue;
      const Real wanted = y[j] >= 0 && y[j] <= 1 ? y[j] + Real(p.label_smoothing) * (Real(0.5) - y[j]) : not_a_number<Real>();
      if (own) e = exponential(-size), r = reciprocal(1 + e);
      CoinTerm<Real> term;
      if (sizeof(Real) == 8 || weighted) {
        term = label_cross_entropy<CoinMath>(wanted, weighted ? Real(p.positive_weight(classes.at(j))) : Real(1), coin_of(x[j], e), x[j], e);
      } else {
        term = label_term(wanted, x[j], size, e, r);
        hard_product *= float(1 + e);
      }
      hard_sum += w * term.value, gradient[j] += w * of_hard * term.slope;
    }
    if constexpr (sizeof(Real) == 4) soft_sum += logf(soft_product), hard_sum += logf(hard_product);
    soft += double(soft_sum), hard += double(hard_sum);
  }
};

// Sparse targets, in a block's shared memory: a bit for each class that is listed. False for a class that is there already, or is none.
ENSDISTILL_DEVICE bool list_classes(const MultilabelProblem& p, int64_t row, uint32_t* bits, int64_t* listed) {
  bool valid = true;
  for (int64_t e = threadIdx.x; e < p.entries; e += blockDim.x) {
    const int64_t id = p.ids[row * p.entries + e];
    if (id < 0 || id >= p.classes) {
      valid = false;
      continue;
    }
    if (number_at(p.targets.data, p.targets.type, row * p.entries + e) == minus_infinity<double>()) continue;
    const uint32_t bit = 1u << (id % 32);
    valid = !(atomicOr(bits + id / 32, bit) & bit) && valid;
    ++*listed;
  }
  return valid;
}

struct Either {
  ENSDISTILL_DEVICE int operator()(int a, int b) const { return a | b; }
};

template <class Real>
__global__ void __launch_bounds__(kMultilabelThreads) multilabel_rows(const __grid_constant__ MultilabelProblem p) {
  constexpr int V = kStepOf<Real>;
  extern __shared__ __align__(16) unsigned char memory[];
  Group<Meeting::any> group(p.lanes, memory);
  auto* bits = reinterpret_cast<uint32_t*>(memory + kReductionBytes);
  const double labelled = double(p.prepared->labelled);
  const double soft_share = p.alpha * p.temperature * p.temperature, hard_share = p.hard_share_of(int64_t(labelled));
  const double soft_factor = p.alpha * p.temperature * p.factor(), hard_factor = hard_share * p.factor();
  const Real inv_t = Real(1 / p.temperature);
  const int members = p.prepared->members_used, rows_of_block = int(blockDim.x) / p.lanes;
  // All threads of a block turn equally often: they meet in reductions.
  for (int64_t first = int64_t(blockIdx.x) * rows_of_block; first < p.rows; first += int64_t(gridDim.x) * rows_of_block) {
    const int64_t n = first + group.index, row = n < p.rows ? n : p.rows - 1;
    const bool mine = n < p.rows, active = mine && p.active(row);
    MultilabelRow<Real> part(p, row, soft_factor, hard_factor, inv_t, members);
    Coin<Real> rest{0, 0};
    const bool sparse = p.kind == Kind::topk && p.taught();
    bool valid = p.prepared->valid;
    if (sparse) {
      const int words = int((p.classes + 31) / 32);
      for (int i = group.rank; i < words; i += group.size) bits[i] = 0;
      group.sync();
      int64_t listed = 0;
      const bool fine = !active || list_classes(p, row, bits, &listed);
      valid = group.reduce(fine ? 0 : 1, 0, Either{}) == 0 && valid;
      const int64_t others = p.classes - group.reduce(listed, int64_t(0), Add<int64_t>{});
      double mean = 0;
      if (p.tail_mode == TailMode::tail && others > 0)
        mean = exp(number_at(p.tail, p.tail_is_double ? Element::f64 : Element::f32, row)) / double(others);
      rest = coin_of_probability(Real(mean));
    }
    const auto store = [&](const Classes& classes, const Real(&gradient)[V]) {
      if (p.gradient) store_classes(p.gradient, p.gradient_layout, p.gradient_layout.at(row, p.inner), classes, gradient);
    };
    const int64_t step = int64_t(p.lanes) * V;
    for (int64_t base = 0; mine && base < p.classes; base += step) {
      const int64_t at = base + int64_t(group.rank) * (p.vectors ? V : 1);
      const Classes classes{at, p.vectors ? 1 : p.lanes, p.classes, p.vectors && at + V <= p.classes};
      Real gradient[V] = {};
      if (active) {
        Coin<Real> mixture[V];
        uint32_t on = ~0u;
        if (sparse) {
#pragma unroll
          for (int j = 0; j < V; ++j) {
            mixture[j] = rest;
            const int64_t c = classes.at(j);
            if (classes.inside(j) && bits[c / 32] >> (c % 32) & 1) on &= ~(1u << j);
          }
        } else if (p.taught()) {
          part.mix(classes, mixture);
        }
        part.run(classes, mixture, on, gradient);
        if (!valid) {
#pragma unroll
          for (int j = 0; j < V; ++j) gradient[j] = not_a_number<Real>();
        }
      }
      store(classes, gradient);
    }
    if (sparse) {
      group.sync();  // the listed classes' gradients are written again
      for (int64_t e = group.rank; active && valid && e < p.entries; e += group.size) {
        const double log_p = number_at(p.targets.data, p.targets.type, row * p.entries + e);
        if (log_p == minus_infinity<double>()) continue;
        const Classes one{p.ids[row * p.entries + e], int(p.classes), p.classes, false};
        Coin<double> coin = coin_of_probability(exp(log_p < 1 ? log_p : 1.0));
        if (log_p < 0) coin.no = -expm1(log_p);
        Coin<Real> mixture[V];
        Real gradient[V];
#pragma unroll
        for (int j = 0; j < V; ++j) mixture[j] = {Real(coin.yes), Real(coin.no)};
        part.run(one, mixture, 1, gradient);
        store(one, gradient);
      }
    }
    const double soft = group.reduce(part.soft, 0.0, Add<double>{}), hard = group.reduce(part.hard, 0.0, Add<double>{});
    if (group.rank == 0 && mine) {
      double loss = active ? p.sample_weight(row) * (soft_share * (soft < 0 ? 0 : soft) + hard_share * hard) : 0.0;
      if (active && !valid) loss = not_a_number<double>();
      if (p.doubles) static_cast<double*>(p.row_loss)[row] = loss;
      else static_cast<float*>(p.row_loss)[row] = float(loss);
    }
    group.sync();  // the listed classes' bits are used no more
  }
}

// Weights of members, and the rows with a known label that is not masked: a warp for each.
__global__ void __launch_bounds__(kMultilabelThreads)
    prepare_multilabel(Prepared* out, int* member, double* weight, const double* weights, int members, const MultilabelCall call) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    bool valid;
    out->members_used = use_members(weights, members, member, weight, &valid);
    out->valid = valid;
  }
  if (!call.marked() || call.reduction != Reduction::mean) return;
  const int lane = int(threadIdx.x) % 32;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / 32);
  int64_t known = 0;
  for (int64_t n = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32; n < call.rows; n += warps) {
    bool found = false;
    for (int64_t base = 0; base < call.classes && !found; base += 32) {
      const int64_t c = base + lane;
      bool here = c < call.classes;
      here = here && !(call.mask.data && number_at(call.mask.data, Element::u8, call.mask.at(n, call.inner) + c * call.mask.class_stride) == 0);
      here = here && number_at(call.marks.data, call.marks.type, call.marks.at(n, call.inner) + c * call.marks.class_stride) != call.unknown();
      found = __any_sync(0xffffffffu, here);
    }
    known += found;
  }
  if (lane == 0 && known > 0) atomicAdd(&out->labelled, static_cast<unsigned long long>(known));
}

}  // namespace ensdistill::cuda
