// The first walk: logits become exponentials and sums. Included after row.h.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// Finds the rows in memory.
template <class S>
void Row<S>::locate() {
  student = source_of<S>(p.student, p.student.at(row, p.inner), p.classes, count, student_layout);
  if (p.gradient) sink = sink_of<S>(p.gradient, p.gradient_layout, p.gradient_layout.at(row, p.inner), p.classes, count, student_layout);
  if (!p.labels && !p.sample_weights) return;
  if (!p.sample_weights) {  // all rows are active
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t known = p.labels[row + (lane < count ? lane : count - 1)];
      label[lane] = known == p.ignore_index ? 0 : known;
    }
    return;
  }
  all_active = true, any_active = false;
  for (int lane = 0; lane < lanes; ++lane) {
    const int64_t n = row + (lane < count ? lane : count - 1);
    const bool on = p.active(n);
    if (across) active[lane] = on ? -1 : 0;
    else active = ivec{} - int32_t(on);
    all_active = all_active && on, any_active = any_active || on;
    label[lane] = on && p.labels && p.labelled(n) ? p.labels[n] : 0;
  }
}

template <class S>
Source<S> Row<S>::target(int64_t k) const {
  const int64_t m = p.members[k];
  const int64_t first = m * p.target_member_stride + p.targets.at(row, p.inner);
  Source<S> source = source_of<S>(p.targets, first, p.classes, count, target_layout);
  if (p.targets.type == Element::u8) read_maps(p, m, row, count, across, source);
  return source;
}

// Some logit of the row, finite where possible: sums of p * (z - s) are taken relative to it, so that a constant added to
// all logits costs no digits. x is the row's first block.
template <class S>
typename S::vec Row<S>::reference_in(const float* x) const {
  const vec v = across ? S::load(x) : S::all(x[0]), size = v < vec{} ? -v : v;
  return size < S::all(__builtin_inff()) ? v : vec{};
}
template <class S>
typename S::vec Row<S>::reference_of(const Source<S>& source) const {
  alignas(64) float x[S::lanes];
  source.decode(source, 0, 1, x);
  return reference_in(x);
}

// The weighted mean of the members' logits (of the logarithms of their probabilities), for the geometric combiners.
template <class S>
void Row<S>::mix_logits(int64_t first, int64_t n, float* z, vec* largest) const {
  alignas(64) float x[kBlockVectors * S::lanes];
  for (int64_t k = 0; k < p.members_used; ++k) {
    const Source<S> source = target(k);
    source.decode(source, first, first + n, x);
    const vec weight = S::all(float(p.weights[k]));
    const Ahead ahead = source.after(first);
    for (int64_t i = 0; i < n; ++i) {
      ahead(i);
      vec v = S::load(x + i * S::lanes);
      if (p.kind == Kind::probs) v = S::log(Softmax<S>::probability(v));
      v = v * weight;
      S::store(z + i * S::lanes, k == 0 ? v : S::load(z + i * S::lanes) + v);
    }
  }
  vec max = S::all(-__builtin_inff());
  for (int64_t i = 0; i < n; ++i) max = S::max(max, S::load(z + i * S::lanes));
  *largest = max;
}

// The student, and beside it the mixture where that is a single distribution: for the forward KL only the sum of
// p * (z - s) is wanted of them, and both blocks are at hand.
template <class S>
void Row<S>::walk_logits() {
  const bool beside = !sparse_target && single(), mixed = p.geometric, probabilities = p.kind == Kind::probs && !mixed;
  const bool one_t = p.target_temperature() == p.temperature;
  const Source<S> teacher = beside ? target(0) : Source<S>{};
  // A row that one thread walks finds its references on the way.
  vec s0 = parts > 1 ? reference_of(student) : vec{}, z0 = parts > 1 && beside && by_dot && !mixed ? reference_of(teacher) : vec{};
  each_range([&, this](Part& part, int64_t begin, int64_t end) {
    alignas(64) float s[kBlockVectors * S::lanes], z[kBlockVectors * S::lanes];
    each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
      const vec largest = student.decode(student, first, first + n, s);
      if (block == 0 && parts == 1) s0 = reference_in(s);
      const vec before = part.q.max;
      q.block(s, block, n, largest, part.q, student.after(first));
      if (own_q1) {
        const vec shift = Walk<S>::shift_of(part.q.max);
        vec sum{};
        for (int64_t i = 0; i < n; ++i) {
          const vec v = S::exp(S::load(s + i * S::lanes) - shift);
          S::store(e_q1 + (first + i) * S::lanes, v);
          sum += v;
        }
        part.q1.sum = part.q1.sum * S::exp(before - shift) + sum;
        part.q1.max = part.q.max;
      }
      if (p.smoothed_classes)
        for (int64_t i = 0; i < n; ++i) {
          const vec w = class_weights(first + i), v = w * S::load(s + i * S::lanes);
          part.weighted_logits += w > vec{} ? v : vec{};
        }
      if (p.statistics)
        for (int64_t i = 0; i < n; ++i) {
          const vec v = S::load(s + i * S::lanes), e = S::load(e_q + (first + i) * S::lanes), t = e * (v - s0) * q.inv_t;
          part.q.dot += e > vec{} ? t : vec{};
          part.best_q_at = v > part.best_q ? ivec{} + int32_t(first + i) : part.best_q_at;
          part.best_q = v > part.best_q ? v : part.best_q;
        }
      if (!beside) return;
      vec largest_z;
      if (mixed) mix_logits(first, n, z, &largest_z);
      else largest_z = teacher.decode(teacher, first, first + n, z);
      if (probabilities) return member.block_of_probabilities(z, block, n, part.member, teacher.after(first));
      member.block(z, block, n, largest_z, part.member, teacher.after(first));
      if (by_dot) {
        if (block == 0 && parts == 1 && !mixed) z0 = reference_in(z);
        const vec d0 = z0 - s0;
        vec sum{};
        for (int64_t i = 0; i < n; ++i) {
          const vec e = S::load(e_m + (first + i) * S::lanes);
          const vec zi = S::load(z + i * S::lanes), si = S::load(s + i * S::lanes);
          const vec t = e * (one_t ? ((zi - si) - d0) * q.inv_t : (zi - z0) * member.inv_t - (si - s0) * q.inv_t);
          sum += e > vec{} ? t : vec{};
        }
        part.member.dot += sum;
      }
    });
  });
  q.finish(walk_over(&Part::q, q.k));
  q1.finish(own_q1 ? walk_over(&Part::q1, q1.k) : Walk<S>(q.max, q.sum));
  if (beside) {
    const Walk<S> walk = walk_over(&Part::member, member.k);
    member.finish(walk);
    // At one temperature as a sum of differences, each small where student and teacher are near.
    kl = walk.dot / walk.sum;
    if (one_t) kl += ((q.max - member.max) + (z0 - s0)) * q.inv_t + S::log(q.sum / member.sum);
    else kl += q.log_sum(s0) - member.log_sum(z0);
    kl = kl < vec{} ? vec{} : kl;  // it isn't negative; a NaN stays
    if (probabilities) member.refuse_unless_distribution();
  }
  last_weight = S::all(1);
  if (p.smoothed_classes) weighted_mean_logit = sum_over(&Part::weighted_logits) / float(p.classes);
  if (p.statistics) {
    const Walk<S> walk = walk_over(&Part::q, q.k);
    student_entropy = q.log_sum(s0) - walk.dot / walk.sum;
    find_best(&Part::best_q, &Part::best_q_at, student_best);
  }
}

// By-product: each member's own entropy. Its exponentials are overwritten afterwards.
template <class S>
void Row<S>::walk_member_entropies() {
  members_entropy = vec{};
  for (int64_t k = 0; k < p.members_used; ++k) {
    const Source<S> source = target(k);
    const bool probabilities = p.kind == Kind::probs;
    const vec z0 = probabilities ? vec{} : reference_of(source);
    each_range([&, this](Part& part, int64_t begin, int64_t end) {
      alignas(64) float z[kBlockVectors * S::lanes];
      each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
        const vec largest = source.decode(source, first, first + n, z);
        if (probabilities) member.block_of_probabilities(z, block, n, part.member, source.after(first));
        else member.block(z, block, n, largest, part.member, source.after(first));
        for (int64_t i = 0; i < n; ++i) {
          const vec e = S::load(e_m + (first + i) * S::lanes);
          const vec x = probabilities ? S::log(e) : (S::load(z + i * S::lanes) - z0) * member.inv_t, t = e * x;
          part.member.dot += e > vec{} ? t : vec{};
        }
      });
    });
    const Walk<S> walk = walk_over(&Part::member, member.k);
    member.finish(walk);
    members_entropy += S::all(float(p.weights[k])) * (member.log_sum(z0) - walk.dot / walk.sum);
  }
}

// p = weight * softmax(last member) + the sum of the members before it, which is folded in block by block while the next
// member's exponentials overwrite it.
template <class S>
void Row<S>::walk_members() {
  const bool probabilities = p.kind == Kind::probs;
  for (int64_t k = 0; k < p.members_used; ++k) {
    const Softmax<S> previous = member;
    const vec weight = last_weight;
    const Source<S> source = target(k);
    each_range([](Part& part) { part.clear_member(); },
               [&, this](Part& part, int64_t begin, int64_t end) {
                 alignas(64) float z[kBlockVectors * S::lanes];
                 each_block(begin, end, [&](int64_t block, int64_t first, int64_t n) {
                   float *m = e_m + first * S::lanes, *sum = sum_p + first * S::lanes;
                   const vec factor = k > 0 ? previous.factor(block) * weight : vec{};
                   const auto begin_sum = [=](int64_t i) ALWAYS_INLINE_LAMBDA { S::store(sum + i * S::lanes, S::load(m + i * S::lanes) * factor); };
                   const auto add = [=](int64_t i) ALWAYS_INLINE_LAMBDA {
                     S::store(sum + i * S::lanes, S::load(sum + i * S::lanes) + S::load(m + i * S::lanes) * factor);
                   };
                   const vec largest = source.decode(source, first, first + n, z);
                   const Ahead ahead = source.after(first);
                   // The fold fills the exponentials' gaps; a few vectors are faster one loop after the other.
                   const bool apart = probabilities || n <= kVeryNarrowClasses;
                   for (int64_t i = 0; apart && k > 0 && i < n; ++i) k == 1 ? begin_sum(i) : add(i);
                   if (probabilities) member.block_of_probabilities(z, block, n, part.member, ahead);
                   else if (apart || k == 0) member.block(z, block, n, largest, part.member, ahead);
                   else if (k == 1) member.block(z, block, n, largest, part.member, ahead, begin_sum);
                   else member.block(z, block, n, largest, part.member, ahead, add);
                 });
               });
    const Walk<S> walk = walk_over(&Part::member, member.k);
    member.finish(walk);
    if (probabilities) member.refuse_unless_distribution();
    last_weight = S::all(float(p.weights[k]));
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
