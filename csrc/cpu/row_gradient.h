// The second walk: exponentials become the loss and the gradient. Included after row_logits.h.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// The gradient is  scale * (slope - q * R)  +  scale_q1 * q1 - scale_classes * w  - the label's amount at the label.
template <class S>
void Row<S>::set_scales(double sample_weight, double hard_share, double label_weight, int lane) {
  const double factor = p.gradient_factor * sample_weight, hard = factor * hard_share, smoothing = p.label_smoothing;
  const float of_divergence = float(p.alpha * p.temperature * factor), of_label = float(hard * (1 - smoothing) * label_weight);
  const float of_q1 = float(hard * ((1 - smoothing) * label_weight + smoothing * p.class_weight_sum / p.classes));
  const float of_classes = float(hard * smoothing / p.classes), of_z = float(2 * p.z_loss * factor);
  scale[lane] = of_divergence, scale_q1_plain[lane] = of_q1, scale_classes[lane] = of_classes, scale_z[lane] = of_z;
  label_amount[lane] = of_label;
  if (across) return;
  scale = S::all(of_divergence), scale_q1_plain = S::all(of_q1), scale_classes = S::all(of_classes), scale_z = S::all(of_z);
}

template <class S>
void Row<S>::prepare_scales() {
  const bool by_label = p.class_weights && p.hard();
  if (p.sample_weights || by_label || p.some_unlabelled)  // else the constructor has set them for all rows
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t n = row + (lane < count ? lane : count - 1);
      set_scales(p.sample_weight(n), p.hard(n) ? p.label_share : 0, by_label ? p.class_weights[label[lane]] : 1, lane);
    }
  if (extra) log_sum_q1 = q1.max + S::log(q1.sum);
  scale_q1 = p.z_loss != 0 ? scale_q1_plain + scale_z * log_sum_q1 : scale_q1_plain;
  unsafe = ivec{};
}

// Writes the gradient: `make(block)` gives a function of the vector's index. Whole vectors of floats go straight to their place.
template <class S>
template <class Make>
ALWAYS_INLINE void Row<S>::write(int64_t block, int64_t first, int64_t n, const Make& make) const {
  alignas(64) float buffer[kBlockVectors * S::lanes];
  const int64_t last = first + n, whole = across || p.gradient_layout.type != Element::f32 ? 0 : p.classes / S::lanes;
  const auto at = make(block);
  const vec factor = extra ? q1.factor(block) * scale_q1 : vec{};
  for (int64_t from = first, to; from < last; from = to) {
    const bool in_place = from < whole;
    to = in_place && whole < last ? whole : last;
    float* g = in_place ? static_cast<float*>(sink.data) + from * S::lanes : buffer;
    const int64_t count = to - from;
    if (in_place)
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(g + (i + kAhead) * S::lanes, 1);
    if (!extra) {
      for (int64_t i = 0; i < count; ++i) S::store(g + i * S::lanes, at(from + i));
    } else {
      for (int64_t i = 0; i < count; ++i) S::store(g + i * S::lanes, at(from + i) + S::load(e_q1 + (from + i) * S::lanes) * factor);
      if (p.smoothed_classes)
        for (int64_t i = 0; i < count; ++i) S::store(g + i * S::lanes, S::load(g + i * S::lanes) - scale_classes * class_weights(from + i));
    }
    patch(block, from, count, g);
    if (!all_active)
      for (int64_t i = 0; i < count; ++i) S::store(g + i * S::lanes, active ? S::load(g + i * S::lanes) : vec{});
    if (!in_place) sink.store(sink, from, to, g);
  }
}

// The parts of single classes: the label, and the classes that a sparse target names.
template <class S>
void Row<S>::patch(int64_t block, int64_t first, int64_t n, float* g) const {
  const int64_t base = first * S::lanes;
  const bool hard = p.hard();
  if (!hard && !sparse_target) return;
  for (int lane = 0; lane < (across ? count : 1); ++lane) {
    if (hard) {
      const int64_t at = position(label[lane], lane) - base;
      if (at >= 0 && at < n * S::lanes) g[at] -= label_amount[lane];
    }
    if (!sparse_target) continue;
    const int64_t* ids = p.ids + (row + lane) * p.entries;
    for (int64_t e = patch_first[lane * blocks + block]; e >= 0; e = patch_next[lane * p.entries + e]) {
      const int64_t at = position(ids[e], lane) - base;
      if (at >= 0 && at < n * S::lanes) g[at] += float(entry_slope[lane * p.entries + e]);
    }
  }
}

// The forward KL's gradient is scale * (q - p): no second number is needed. With kValue the loss is added up on the way.
template <class S>
template <bool kSum, bool kValue>
void Row<S>::gradient_of_forward_kl() {
  using Sum = std::conditional_t<kSum, Yes, No>;
  if (!kValue && !p.gradient) return finish(kl);
  each_range([](Part& part) { part.clear_terms(); },
             [&, this](Part& part, int64_t begin, int64_t end) {
               each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
                 const vec fq = q.factor(block), fm = member.factor(block) * last_weight;
                 if constexpr (kValue) {
                   vec value{};
                   for (int64_t i = first; i < first + n; ++i) {
                     const vec qi = S::load(e_q + i * S::lanes) * fq, pi = mixture(i, fm, Sum{});
                     value += ForwardKl::at<S>(pi, qi, S::log(pi / qi), qi).value;
                     part.unsafe |= (pi > vec{}) & (qi < S::all(kTiny));
                   }
                   part.value += value;
                 }
                 if (!p.gradient) return;
                 const vec sq = fq * scale, sm = fm * scale;
                 write(block, first, n, [&](int64_t) {
                   return [&](int64_t i) ALWAYS_INLINE_LAMBDA {
                     if constexpr (kSum)
                       return S::load(e_q + i * S::lanes) * sq - (S::load(e_m + i * S::lanes) * sm + S::load(sum_p + i * S::lanes) * scale);
                     else return S::load(e_q + i * S::lanes) * sq - S::load(e_m + i * S::lanes) * sm;
                   };
                 });
               });
             });
  if (kValue) note_unsafe();
  finish(kValue ? sum_over(&Part::value) : kl);
}

// Any other divergence: its terms first, with the slopes left in scratch, for their sum is in every gradient.
template <class S>
template <class D, bool kSum>
void Row<S>::terms() {
  using Sum = std::conditional_t<kSum, Yes, No>;
  const vec beta = S::all(float(p.beta));
  each_range([](Part& part) { part.clear_terms(); },
             [&, this](Part& part, int64_t begin, int64_t end) {
               each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
                 const vec fq = q.factor(block), fm = member.factor(block) * last_weight;
                 vec value{}, slope{};
                 for (int64_t i = first; i < first + n; ++i) {
                   const vec qi = S::load(e_q + i * S::lanes) * fq, pi = mixture(i, fm, Sum{});
                   Term<vec> term;
                   if constexpr (D::kNeedsRatio) {
                     term = D::template at<S>(pi, qi, -S::log(qi / pi), beta);
                     part.unsafe |= (qi > vec{}) & (pi < S::all(kTiny));
                   } else {
                     term = D::template at<S>(pi, qi, qi, beta);
                   }
                   S::store(e_m + i * S::lanes, term.slope);
                   value += term.value, slope += term.slope;
                 }
                 part.value += value, part.slope += slope;
               });
             });
  note_unsafe();
}

template <class S>
template <class D>
void Row<S>::terms_and_gradient() {
  summed ? terms<D, true>() : terms<D, false>();
  const vec value = sum_over(&Part::value), slopes = sum_over(&Part::slope);
  if (p.gradient)
    each_range([](Part&) {},
               [&, this](Part&, int64_t begin, int64_t end) {
                 each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
                   const vec fq = q.factor(block) * slopes * scale;
                   write(block, first, n, [&](int64_t) {
                     return [&](int64_t i) ALWAYS_INLINE_LAMBDA { return S::load(e_m + i * S::lanes) * scale - S::load(e_q + i * S::lanes) * fq; };
                   });
                 });
               });
  finish(value);
}

template <class S>
void Row<S>::note_unsafe() {
  for (int i = 0; i < parts; ++i) unsafe |= part[i].unsafe;
  if (across) return;
  for (int lane = 1; lane < S::lanes; ++lane) unsafe[0] |= unsafe[lane];
}

// By-products of the mixture, while its exponentials still stand.
template <class S>
template <bool kSum>
void Row<S>::observe_mixture() {
  using Sum = std::conditional_t<kSum, Yes, No>;
  each_range([&, this](Part& part, int64_t begin, int64_t end) {
    each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
      const vec fm = member.factor(block) * last_weight;
      for (int64_t i = first; i < first + n; ++i) {
        const vec pi = mixture(i, fm, Sum{}), t = pi * S::log(pi);
        part.entropy -= pi > vec{} ? t : (pi != pi ? pi : vec{});
        part.best_p_at = pi > part.best_p ? ivec{} + int32_t(i) : part.best_p_at;
        part.best_p = pi > part.best_p ? pi : part.best_p;
      }
    });
  });
  mixture_entropy = sum_over(&Part::entropy);
  find_best(&Part::best_p, &Part::best_p_at, mixture_best);
}

// The first class with the largest value, for each lane (for all of them, along a row).
template <class S>
void Row<S>::find_best(vec Part::* value, ivec Part::* at, int64_t* best) const {
  float largest[S::lanes];
  for (int lane = 0; lane < S::lanes; ++lane) largest[lane] = -__builtin_inff(), best[lane] = -1;
  for (int i = 0; i < parts; ++i)
    for (int lane = 0; lane < S::lanes; ++lane) {
      const float v = (part[i].*value)[lane];
      const int64_t c = across ? (part[i].*at)[lane] : int64_t((part[i].*at)[lane]) * S::lanes + lane;
      const int to = across ? lane : 0;
      if (v > largest[to] || (v == largest[to] && (best[to] < 0 || c < best[to]))) largest[to] = v, best[to] = c;
    }
}

// The cross entropies of the rows' labels, 0 where a row has none.
template <class S>
typename S::vec Row<S>::label_losses() const {
  alignas(64) float logit[S::lanes] = {}, weight[S::lanes] = {};
  alignas(64) int32_t known[S::lanes] = {};
  for (int lane = 0; lane < count; ++lane) {
    if (!active[lane] || !p.labelled(row + lane)) continue;
    known[lane] = -1, logit[lane] = student.one(label[lane], lane);
    weight[lane] = p.class_weights ? float(p.class_weights[label[lane]]) : 1.f;
  }
  ivec has;
  std::memcpy(&has, known, sizeof has);
  const vec loss = cross_entropy(log_sum_q1, S::load(logit), S::load(weight), p.smoothed_classes ? weighted_mean_logit : vec{},
                                 S::all(float(p.class_weight_sum / p.classes)), S::all(float(p.label_smoothing)));
  return has ? loss * float(p.label_share) : vec{};
}

// The rows' losses, from `divergence` as the divergence's values.
template <class S>
void Row<S>::finish(vec divergence) {
  vec loss = S::all(float(p.alpha * p.temperature * p.temperature)) * divergence;
  if (p.z_loss != 0) loss += S::all(float(p.z_loss)) * log_sum_q1 * log_sum_q1;
  if (p.hard()) loss += label_losses();
  alignas(64) float value[S::lanes];
  S::store(value, loss);
  const bool plain = all_active && !p.statistics && !p.sample_weights;
  if (plain && count == S::lanes && !S::any(unsafe)) {
    for (int lane = 0; lane < S::lanes; ++lane) p.row_loss[row + lane] = value[lane];
    return;
  }
  for (int lane = 0; lane < count; ++lane)
    if (plain && !unsafe[lane]) p.row_loss[row + lane] = value[lane];
    else finish_row(lane, value[lane]);
}

// Rows of weight 0. There may be many: the prompts of a batch, its padding.
template <class S>
void Row<S>::finish_unread() {
  alignas(64) const float zeros[kBlockVectors * S::lanes] = {};
  if (p.gradient) each_block(0, blocks, [&, this](int64_t, int64_t first, int64_t n) { sink.store(sink, first, first + n, zeros); });
  for (int lane = 0; lane < count; ++lane) finish_row(lane, 0);
}

template <class S>
void Row<S>::finish_row(int lane, float value) {
  const int64_t n = row + lane;
  double* statistics = p.statistics ? p.statistics + 4 * n : nullptr;
  if (!active[lane]) {
    p.row_loss[n] = 0;
    if (statistics) statistics[0] = statistics[1] = statistics[2] = statistics[3] = __builtin_nan("");
    return;
  }
  if (unsafe[lane]) return row_in_double(p, n);
  p.row_loss[n] = p.sample_weight(n) * value;
  if (!statistics) return;
  statistics[0] = student_entropy[lane], statistics[1] = mixture_entropy[lane];
  statistics[2] = student_best[lane] == mixture_best[lane];
  statistics[3] = mixture_entropy[lane] - members_entropy[lane];
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
