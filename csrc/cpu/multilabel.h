// The multi-label loss and gradient of a row, or of `lanes` rows side by side. Included once for each instruction set, after targets.h.
//
// Nothing is reduced over classes but the loss, so a block is walked once: the members' logits become the mixture's probabilities, in a
// buffer that stays in the first-level cache, and these and the student's logits become loss and gradient.

namespace ensdistill {
namespace ENSDISTILL_ISA {

template <class S>
class MultilabelRow {
 public:
  using vec = typename S::vec;
  using ivec = typename S::ivec;
  using uvec = typename S::uvec;

  MultilabelRow(const MultilabelProblem& problem, void* memory);
  // Rows first .. first + count - 1: one, or as many as there are lanes. They must lie in the same outer dimension.
  void run(int64_t first, int64_t count);
  static size_t scratch_bytes(const MultilabelProblem& problem);

 private:
  static constexpr int64_t kVectors = 32;  // of a block
  static constexpr int kAtOnce = 4;        // members that share a division
  struct Buffer {
    alignas(64) float x[kVectors * S::lanes];
  };

  Layout layout_of(const Matrix& matrix) const { return !across ? Layout::along : matrix.class_stride == 1 ? Layout::turned : Layout::direct; }
  Source<S> source(const Matrix& matrix, int64_t from) const;
  Source<S> target(int64_t k) const;
  const float* read(const Source<S>& from, int64_t first, int64_t n, float* buffer) const;
  Ahead after(const void* data, Element type, int64_t first) const;
  void list_classes();
  void mix(int64_t first, int64_t n);
  struct Fractions {
    vec yes, no, below;
  };
  template <int kMembers, bool kNear>
  Fractions add_up(const float* const (&at)[kMembers], const vec (&weight)[kMembers], int64_t v) const;
  template <int kMembers>
  __attribute__((noinline, cold)) Fractions add_up_far(const float* const (&at)[kMembers], const vec (&weight)[kMembers], int64_t v) const {
    return add_up<kMembers, false>(at, weight, v);
  }
  template <int kMembers, bool kMore>
  void mix_logits(int64_t k, int64_t first, int64_t n);
  void mix_probabilities(int64_t first, int64_t n);
  void mean_logits(int64_t first, int64_t n, float* z) const;
  void merge_mean(const float* z, int64_t n);
  template <bool kMarks, bool kSome>
  void block(int64_t first, int64_t n);

  const MultilabelProblem& p;
  const bool across, sparse, plain;
  const int64_t vectors;
  const int lanes;  // that are rows of their own
  const TwoFloats k_student, k_target;
  const vec inv_t;

  float *row_yes, *row_no;  // [vectors * lanes] of sparse targets
  int32_t* listed;          // [vectors * lanes] the number of the row that listed a class last
  int32_t turn = 0;
  Source<S>* sources;  // [members_used]
  Buffer yes, no, s, z[kAtOnce], y, m, g;
  const float *p_yes, *p_no;  // of the block that is walked

  int64_t row = 0, count = 0;  // now
  Source<S> student, marks, mask;
  Sink<S> sink;
  ivec active;
  vec of_soft, of_hard, soft, hard;  // the gradient's factors, and the sums of the loss's parts
};

template <class S>
size_t MultilabelRow<S>::scratch_bytes(const MultilabelProblem& p) {
  const int64_t vectors = runs_across(p) ? p.classes : (p.classes + S::lanes - 1) / S::lanes;
  return size_t(p.kind == Kind::topk ? 3 * vectors * int64_t(sizeof(vec)) : 0) + size_t(p.members_used) * sizeof(Source<S>) + 64;
}

template <class S>
MultilabelRow<S>::MultilabelRow(const MultilabelProblem& problem, void* memory)
    : p(problem),
      across(runs_across(problem)),
      sparse(problem.kind == Kind::topk),
      plain(!problem.mask.data && !problem.class_weights && !problem.positive_weights),
      vectors(across ? problem.classes : (problem.classes + S::lanes - 1) / S::lanes),
      lanes(across ? S::lanes : 1),
      k_student(S::log2_e / problem.temperature),
      k_target(S::log2_e / problem.target_temperature()),
      inv_t(S::all(float(1 / problem.temperature))) {
  auto* floats = static_cast<float*>(memory);
  const int64_t size = sparse ? vectors * S::lanes : 0;
  row_yes = floats, row_no = floats + size, listed = reinterpret_cast<int32_t*>(floats + 2 * size);
  std::memset(listed, 0, size_t(size) * 4);
  sources = reinterpret_cast<Source<S>*>(listed + size);
  p_yes = yes.x, p_no = no.x;
}

template <class S>
Source<S> MultilabelRow<S>::source(const Matrix& matrix, int64_t from) const {
  Source<S> source = source_of<S>(matrix, from + matrix.at(row, p.inner), p.classes, count, layout_of(matrix));
  source.step = S::all(1);  // bytes are numbers
  return source;
}

template <class S>
Source<S> MultilabelRow<S>::target(int64_t k) const {
  const int64_t m = p.members[k];
  Source<S> target = source(p.targets, m * p.target_member_stride);
  if (p.targets.type == Element::u8) read_maps(p, m, row, count, across, target);
  return target;
}

// Vectors as floats: in their place where they are floats there.
template <class S>
const float* MultilabelRow<S>::read(const Source<S>& from, int64_t first, int64_t n, float* buffer) const {
  if (!across && from.type == Element::f32 && (first + n) * S::lanes <= p.classes) return static_cast<const float*>(from.data) + first * S::lanes;
  from.decode(from, first, first + n, buffer);
  return buffer;
}

// Along a row, the memory of the next block, which is prefetched during this one's arithmetic. Rows side by side are prefetched as they are read.
template <class S>
Ahead MultilabelRow<S>::after(const void* data, Element type, int64_t first) const {
  const int64_t step = across ? 0 : S::lanes * bytes_of(type);
  return {static_cast<const char*>(data) + (first + kVectors) * step, step};
}

// Sparse targets: all classes of the rows, first with the others' mean probability. A class that is listed twice, or outside of the
// range, makes its row NaN.
template <class S>
void MultilabelRow<S>::list_classes() {
  for (int lane = 0; lane < count || (!across && lane < 1); ++lane) {
    const int64_t n = row + lane, at = n * p.entries;
    if (!p.active(n)) continue;
    ++turn;
    const auto log_p = [&](int64_t e) {
      return p.targets.type == Element::f64 ? static_cast<const double*>(p.targets.data)[e] : double(static_cast<const float*>(p.targets.data)[e]);
    };
    int64_t others = p.classes;
    for (int64_t e = at; e < at + p.entries; ++e) others -= log_p(e) != -__builtin_inf();
    double rest = 0;
    if (p.tail_mode == TailMode::tail && others > 0)
      rest = std::exp(p.tail_is_double ? static_cast<const double*>(p.tail)[n] : double(static_cast<const float*>(p.tail)[n])) / double(others);
    const auto place = [&](int64_t c) { return across ? c * S::lanes + lane : c; };
    const Coin<float> mean = coin_of_probability(float(rest));
    bool valid = true;
    for (int64_t c = 0; c < p.classes; ++c) row_yes[place(c)] = mean.yes, row_no[place(c)] = mean.no;
    for (int64_t e = at; e < at + p.entries; ++e) {
      const int64_t id = p.ids[e];
      if (id < 0 || id >= p.classes) {
        valid = false;
        continue;
      }
      if (log_p(e) == -__builtin_inf()) continue;
      valid = valid && listed[place(id)] != turn;
      listed[place(id)] = turn;
      const Coin<double> coin = coin_of_probability(std::exp(log_p(e)));
      row_yes[place(id)] = float(coin.yes), row_no[place(id)] = float(coin.no);
    }
    if (!valid)
      for (int64_t c = 0; c < p.classes; ++c) row_yes[place(c)] = row_no[place(c)] = __builtin_nanf("");
  }
}

// The mixture of a block, p_yes and p_no.
template <class S>
void MultilabelRow<S>::mix(int64_t first, int64_t n) {
  if (sparse) {
    p_yes = row_yes + first * S::lanes, p_no = row_no + first * S::lanes;
    return;
  }
  if (p.geometric) {
    mean_logits(first, n, z[0].x);
    return merge_mean(z[0].x, n);
  }
  if (p.kind != Kind::logits) return mix_probabilities(first, n);
  int64_t k = 0;
  for (; k + 4 <= p.members_used; k += 4) k == 0 ? mix_logits<4, false>(k, first, n) : mix_logits<4, true>(k, first, n);
  for (; k + 2 <= p.members_used; k += 2) k == 0 ? mix_logits<2, false>(k, first, n) : mix_logits<2, true>(k, first, n);
  if (k < p.members_used) k == 0 ? mix_logits<1, false>(k, first, n) : mix_logits<1, true>(k, first, n);
}

// The members' fractions as one, (yes + no) / below.
template <class S>
template <int kMembers, bool kNear>
ALWAYS_INLINE typename MultilabelRow<S>::Fractions MultilabelRow<S>::add_up(const float* const (&at)[kMembers], const vec (&weight)[kMembers],
                                                                            int64_t v) const {
  const TwoFloats scale = k_target;
  Fractions sum{vec{}, vec{}, S::all(1)};
#pragma GCC unroll 4
  for (int i = 0; i < kMembers; ++i) {
    const vec x = S::load(at[i] + v * S::lanes), part = weight[i] * sum.below;
    if constexpr (kNear) {
      const vec e = S::exp_any(x, -scale.high), one = 1 + e;
      sum = {sum.yes * one + part, sum.no * one + e * part, sum.below * one};
    } else {
      const vec e = S::exp(-S::abs(x), scale), one = 1 + e, small = e * part;
      const ivec positive = x > vec{};
      sum = {sum.yes * one + (positive ? part : small), sum.no * one + (positive ? small : part), sum.below * one};
    }
  }
  return sum;
}

// Some members' part of the mixture; kMore: beside others. Of each member e = exp(-x), which is a sum of fractions with one division while
// the product of all 1 + e is a number. Lanes where it isn't take exp(-|x|), of which no product is large. (GCC 12 compiles
// `if (k > 0) sum += ...` of vectors wrongly for AVX-512, so that choice is the template's.)
template <class S>
template <int kMembers, bool kMore>
void MultilabelRow<S>::mix_logits(int64_t k, int64_t first, int64_t n) {
  const float* at[kMembers];
  vec weight[kMembers];
  Ahead ahead[kMembers];
  for (int i = 0; i < kMembers; ++i) {
    const Source<S>& source = sources[k + i];
    at[i] = read(source, first, n, z[i].x), weight[i] = S::all(float(p.weights[k + i])), ahead[i] = after(source.data, source.type, first);
  }
  for (int64_t v = 0; v < n; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kMembers; ++i) ahead[i](v);
    Fractions sum = add_up<kMembers, true>(at, weight, v);
    const ivec far = (uvec)sum.below > (uvec)S::all(1e37f);  // as bits, so that NaN is, too
    if (__builtin_expect(S::any(far), 0)) {
      const Fractions safe = add_up_far<kMembers>(at, weight, v);
      sum = {far ? safe.yes : sum.yes, far ? safe.no : sum.no, far ? safe.below : sum.below};
    }
    const vec share = S::reciprocal(sum.below);
    vec now_yes = sum.yes * share, now_no = sum.no * share;
    if constexpr (kMore) now_yes += S::load(yes.x + v * S::lanes), now_no += S::load(no.x + v * S::lanes);
    S::store(yes.x + v * S::lanes, now_yes);
    S::store(no.x + v * S::lanes, now_no);
  }
}

template <class S>
void MultilabelRow<S>::mix_probabilities(int64_t first, int64_t n) {
  std::memset(yes.x, 0, sizeof yes.x), std::memset(no.x, 0, sizeof no.x);
  for (int64_t k = 0; k < p.members_used; ++k) {
    const float* at = read(sources[k], first, n, z[0].x);
    const vec weight = S::all(float(p.weights[k]));
    for (int64_t v = 0; v < n; ++v) {
      vec x = S::load(at + v * S::lanes);
      if (p.kind == Kind::log_probs) x = S::exp(x > S::all(1) ? S::all(1) : x);
      const Coin<vec> coin = coin_of_probability(x);
      S::store(yes.x + v * S::lanes, S::load(yes.x + v * S::lanes) + weight * coin.yes);
      S::store(no.x + v * S::lanes, S::load(no.x + v * S::lanes) + weight * coin.no);
    }
  }
}

template <class S>
void MultilabelRow<S>::mean_logits(int64_t first, int64_t n, float* mean) const {
  alignas(64) float buffer[kVectors * S::lanes];
  std::memset(mean, 0, sizeof(Buffer));
  for (int64_t k = 0; k < p.members_used; ++k) {
    const float* at = read(sources[k], first, n, buffer);
    const vec weight = S::all(float(p.weights[k]));
    for (int64_t v = 0; v < n; ++v) {
      vec x = S::load(at + v * S::lanes);
      if (p.kind != Kind::logits) {
        const bool logs = p.kind == Kind::log_probs;
        const Coin<vec> coin = coin_of_probability(logs ? S::exp(x > S::all(1) ? S::all(1) : x) : x);
        x = (logs ? (x > vec{} ? vec{} : x) : S::log(coin.yes)) - S::log(coin.no);
      }
      S::store(mean + v * S::lanes, S::load(mean + v * S::lanes) + weight * x);
    }
  }
}

template <class S>
void MultilabelRow<S>::merge_mean(const float* mean, int64_t n) {
  for (int64_t v = 0; v < n; ++v) {
    const vec x = S::load(mean + v * S::lanes);
    const Coin<vec> coin = coin_of(x, S::exp(-S::abs(x), k_target));
    S::store(yes.x + v * S::lanes, coin.yes);
    S::store(no.x + v * S::lanes, coin.no);
  }
}

// Loss and gradient of a block. kSome: not all of its lanes are classes that count, and alike.
template <class S>
template <bool kMarks, bool kSome>
void MultilabelRow<S>::block(int64_t first, int64_t n) {
  const float* const at = read(student, first, n, s.x);
  const float* const marked = kMarks ? read(marks, first, n, y.x) : nullptr;
  if (kSome && p.mask.data) mask.decode(mask, first, first + n, m.x);
  const bool taught = p.taught(), one_t = taught && p.temperature == 1;
  const vec unknown = S::all(float(p.unknown())), smoothing = S::all(float(p.label_smoothing));
  const bool in_place = p.gradient && !across && p.gradient_layout.type == Element::f32 && (first + n) * S::lanes <= p.classes;
  float* const to = in_place ? static_cast<float*>(sink.data) + first * S::lanes : g.x;
  vec soft_sum{}, hard_sum{}, soft_product = S::all(1), hard_product = S::all(1);  // no factor is above 2
  const Ahead ahead = after(student.data, student.type, first), ahead_to = after(p.gradient ? sink.data : student.data, student.type, first);
  for (int64_t v = 0; v < n; ++v) {
    const int64_t i = first + v;
    ahead(v), ahead_to(v);
    const vec logit = S::load(at + v * S::lanes);
    CoinTerm<vec> soft_now{}, hard_now{};
    vec e{}, sum = S::all(1), r{};
    if (taught) {
      e = S::exp(-S::abs(logit), k_student), sum = 1 + e, r = S::reciprocal(sum);
      const Coin<vec> mixture{S::load(p_yes + v * S::lanes), S::load(p_no + v * S::lanes)};
      soft_now = kl_term<S>(mixture, logit, S::abs(logit) * inv_t, e, r);
      if constexpr (kSome) soft_now.value += S::log1p(e);
      else soft_product *= sum;
    }
    if constexpr (kMarks) {
      if (!one_t) e = S::exp(-S::abs(logit)), sum = 1 + e, r = S::reciprocal(sum);
      const vec label = S::load(marked + v * S::lanes);
      const ivec known = label != unknown, legal = (label >= vec{}) & (label <= S::all(1));
      vec wanted = legal ? label : S::all(__builtin_nanf(""));
      wanted = wanted + smoothing * (0.5f - wanted);
      if constexpr (kSome) {
        const vec positive = !p.positive_weights ? S::all(1) : across ? S::all(p.positives_f32[i]) : S::load(p.positives_f32 + i * S::lanes);
        hard_now = label_cross_entropy<S>(wanted, positive, coin_of(logit, e), logit, e);
      } else {
        hard_now = label_term(wanted, logit, S::abs(logit), e, r);
        hard_product *= known ? sum : S::all(1);
      }
      hard_now = {known ? hard_now.value : vec{}, known ? hard_now.slope : vec{}};
    }
    vec grad = of_soft * soft_now.slope;
    if constexpr (kMarks) grad += of_hard * hard_now.slope;
    if constexpr (kSome) {
      ivec on = active;
      if (!across) on &= S::lane_index() < ivec{} + int32_t(p.classes - i * S::lanes < S::lanes ? p.classes - i * S::lanes : S::lanes);
      if (p.mask.data) on &= S::load(m.x + v * S::lanes) != vec{};
      if (p.class_weights) {
        const vec weight = across ? S::all(p.classes_f32[i]) : S::load(p.classes_f32 + i * S::lanes);
        on &= weight > vec{};
        soft_now.value *= weight, hard_now.value *= weight, grad *= weight;
      }
      soft_now.value = on ? soft_now.value : vec{}, hard_now.value = on ? hard_now.value : vec{}, grad = on ? grad : vec{};
    }
    soft_sum += soft_now.value, hard_sum += hard_now.value;
    if (p.gradient) S::store(to + v * S::lanes, grad);
  }
  soft += soft_sum + S::log(soft_product), hard += hard_sum + S::log(hard_product);
  if (p.gradient && !in_place) sink.store(sink, first, first + n, g.x);
}

template <class S>
void MultilabelRow<S>::run(int64_t first, int64_t rows) {
  row = first, count = rows;
  if (p.gradient)
    sink = sink_of<S>(p.gradient, p.gradient_layout, p.gradient_layout.at(row, p.inner), p.classes, count, layout_of(p.gradient_layout));
  alignas(64) float weight[S::lanes];
  bool some = false, all = true;
  for (int lane = 0; lane < S::lanes; ++lane) {
    const bool within = !across || lane < count;
    weight[lane] = within ? float(p.sample_weight(row + (across ? lane : 0))) : 0.f;
    const bool on = within && p.active(row + (across ? lane : 0));
    active[lane] = on ? -1 : 0;
    some = some || on, all = all && on;
  }
  if (!some) {  // rows of weight 0, which are not read
    std::memset(g.x, 0, sizeof g.x);
    for (int64_t i = 0; p.gradient && i < vectors; i += kVectors) sink.store(sink, i, i + kVectors < vectors ? i + kVectors : vectors, g.x);
    for (int lane = 0; lane < count; ++lane) p.row_loss[row + lane] = 0;
    return;
  }
  const vec by_row = S::load(weight);
  of_soft = by_row * S::all(float(p.soft_share * p.gradient_factor / p.temperature));
  of_hard = by_row * S::all(float(p.hard_share * p.gradient_factor));
  soft = hard = vec{};
  student = source(p.student, 0);
  if (p.marked()) marks = source(p.marks, 0);
  if (p.mask.data) mask = source(p.mask, 0);
  if (p.taught()) {
    if (sparse) list_classes();
    else
      for (int64_t k = 0; k < p.members_used; ++k) new (sources + k) Source<S>(target(k));
  }
  const int64_t whole = across ? vectors : p.classes / S::lanes;
  for (int64_t i = 0, end; i < vectors; i = end) {
    end = i + kVectors < vectors ? i + kVectors : vectors;
    if (i < whole && whole < end) end = whole;  // the last vector of a row, in part past its end, is a block of its own
    if (p.taught()) mix(i, end - i);
    const bool select = !plain || !all || i >= whole;
    if (p.marked()) select ? block<true, true>(i, end - i) : block<true, false>(i, end - i);
    else select ? block<false, true>(i, end - i) : block<false, false>(i, end - i);
  }
  if (!across) soft = S::lane_sum(soft), hard = S::lane_sum(hard);
  for (int lane = 0; lane < count; ++lane) {
    const double divergence = soft[lane] < 0 ? 0 : soft[lane];  // it isn't negative; a NaN stays
    const double loss = p.soft_share * divergence + p.hard_share * hard[lane];
    p.row_loss[row + lane] = active[lane] ? p.sample_weight(row + lane) * loss : 0;
  }
}

// Units of work: rows, or groups of `lanes` neighbours in the inner dimension.
template <class S>
void multilabel_rows(const MultilabelProblem& problem, int64_t begin, int64_t end, void* memory) {
  MultilabelRow<S> row(problem, memory);
  const bool across = runs_across(problem);
  const int64_t groups = across ? (problem.inner + S::lanes - 1) / S::lanes : problem.inner;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t within = g % groups * (across ? S::lanes : 1), left = problem.inner - within;
    row.run(g / groups * problem.inner + within, !across ? 1 : left < S::lanes ? left : S::lanes);
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
