// The loss and gradient of a row, or of `lanes` rows side by side. Included once for each instruction set, after softmax.h.
//
// A row is walked twice: once over its logits, which become exponentials in scratch with their sums (row_logits.h, row_codes.h), and once
// over the scratch, which becomes the gradient (row_gradient.h; row_sparse.h for targets that name only some classes). The
// element types, the layout and the kind of target are gone after the first walk. Each walk is over a range of blocks, so
// that a team of threads can share a row that is wide enough.

namespace ensdistill {
namespace ENSDISTILL_ISA {

constexpr float kTiny = 1.2e-38f;  // below it exp() gives 0, and a float has lost bits

struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

template <class S>
struct CodeTable;

template <class S>
class Row {
 public:
  using vec = typename S::vec;
  using ivec = typename S::ivec;

  Row(const Problem& problem, void* memory, const Team& team);
  // Rows first .. first + count - 1: one, or as many as there are lanes. They must lie in the same outer dimension.
  void run(int64_t first, int64_t count);
  // Floats: for one thread, or for a team.
  static size_t scratch_bytes(const Problem& problem);

 private:
  // The sums of one thread's range of blocks.
  struct Part {
    Walk<S> q, q1, member;
    vec weighted_logits, value, slope, entropy, outside, best_q, best_p;
    ivec best_q_at, best_p_at, unsafe;

    Part()
        : weighted_logits{},
          value{},
          slope{},
          entropy{},
          outside{},
          best_q(S::all(-__builtin_inff())),
          best_p(S::all(-1.f)),
          best_q_at{},
          best_p_at{},
          unsafe{} {}
    // The sums that one walk takes. All of a part are as many stores as a narrow row has vectors.
    void clear_member() { member = Walk<S>(); }
    void clear_terms() { value = slope = vec{}, unsafe = ivec{}; }
  };

  // f(part, begin, end): all blocks, shared out over the team. Each part is constructed anew, or reset by clear(part).
  template <class F>
  void each_range(const F& f) {
    each_range([](Part& part) { new (&part) Part; }, f);
  }
  template <class Clear, class F>
  void each_range(const Clear& clear, const F& f);
  // f(block, first vector, vectors).
  template <class F>
  ALWAYS_INLINE void each_block(int64_t begin, int64_t end, const F& f) const {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kBlockVectors;
      f(b, first, (first + kBlockVectors < vectors ? first + kBlockVectors : vectors) - first);
    }
  }
  // Parts are put together in their order: the same bits for the same number of threads.
  vec sum_over(vec Part::* what) const {
    vec sum = part[0].*what;
    for (int i = 1; i < parts; ++i) sum += part[i].*what;
    return across ? sum : S::lane_sum(sum);
  }
  Walk<S> walk_over(Walk<S> Part::* what, TwoFloats k) const {
    Walk<S> walk = part[0].*what;
    for (int i = 1; i < parts; ++i) walk.merge(part[i].*what, k);
    if (!across) walk.reduce_lanes(k, blocks == 1);
    return walk;
  }

  void locate();
  Source<S> target(int64_t k) const;
  vec reference_of(const Source<S>& source) const;
  vec reference_in(const float* x) const;
  void walk_logits();
  void walk_members();
  bool walk_codes();
  template <int kMembers>
  void mix_codes(int64_t k, const CodeTable<S>* tables);
  void walk_member_entropies();
  void mix_logits(int64_t first, int64_t count, float* z, vec* largest) const;
  void set_scales(double sample_weight, double hard_share, double label_weight, int lane);
  void prepare_scales();

  template <bool kSum, bool kValue>
  void gradient_of_forward_kl();
  template <class D, bool kSum>
  void terms();
  template <class D>
  void terms_and_gradient();
  template <class D>
  void dense();
  template <class Make>
  void write(int64_t block, int64_t first, int64_t n, const Make& make) const;
  void patch(int64_t block, int64_t first, int64_t count, float* g) const;
  template <class D>
  void sparse();
  template <bool kSum>
  void observe_mixture();
  void find_best(vec Part::* value, ivec Part::* at, int64_t* best) const;
  void note_unsafe();
  vec label_losses() const;
  void finish(vec divergence);
  void finish_row(int lane, float value);
  void finish_unread();

  // Where class c of a lane stands in scratch.
  int64_t position(int64_t c, int lane) const { return across ? c * S::lanes + lane : c; }
  vec class_weights(int64_t i) const { return across ? S::all(p.smoothed_classes[i]) : S::load(p.smoothed_classes + i * S::lanes); }
  ALWAYS_INLINE vec mixture(int64_t i, vec factor, Yes) const { return S::load(e_m + i * S::lanes) * factor + S::load(sum_p + i * S::lanes); }
  ALWAYS_INLINE vec mixture(int64_t i, vec factor, No) const { return S::load(e_m + i * S::lanes) * factor; }
  bool single() const { return p.members_used == 1 || p.geometric; }

  const Problem& p;
  const Team& team;
  const bool across, sparse_target, extra, own_q1, by_dot;
  const int64_t vectors, blocks;
  const int parts, lanes;  // lanes: those that are rows of their own

  float *e_q, *e_q1, *e_m, *sum_p;
  vec *used_q, *used_m;
  double *entry_q, *entry_slope;      // [entries] of a lane, twice for the lanes
  int64_t *patch_next, *patch_first;  // lists of entries by block
  Part* part;                         // [parts]

  int64_t row = 0, count = 0;  // now
  Layout student_layout, target_layout;
  Source<S> student;
  Sink<S> sink;
  Softmax<S> q, q1, member;
  bool summed;  // whether the mixture is e_m plus a sum over the members before; else the former alone
  vec last_weight, kl, weighted_mean_logit;
  vec student_entropy, mixture_entropy, members_entropy;  // by-products
  int64_t student_best[S::lanes], mixture_best[S::lanes];
  vec scale, scale_q1, scale_q1_plain, scale_z, scale_classes,
      log_sum_q1;  // of the divergence's gradient, of q at T = 1 and of the class weights in it
  bool all_active = true, any_active = true;
  ivec active, unsafe;  // unsafe: float32 loses digits that matter, so the row is done again in double
  float label_amount[S::lanes];
  int64_t label[S::lanes];
};

template <class S>
template <class Clear, class F>
ALWAYS_INLINE void Row<S>::each_range(const Clear& clear, const F& f) {
  for (int i = 0; i < parts; ++i) clear(part[i]);
  if (parts == 1) return f(part[0], 0, blocks);
  struct Context {
    Row* row;
    const F* f;
  } context{this, &f};
  team.run(
      parts,
      [](void* c, int i) {
        auto& [row, f] = *static_cast<Context*>(c);
        (*f)(row->part[i], row->blocks* i / row->parts, row->blocks * (i + 1) / row->parts);
      },
      &context);
}

template <class S>
size_t Row<S>::scratch_bytes(const Problem& p) {
  const int64_t vectors = runs_across(p) ? p.classes : (p.classes + S::lanes - 1) / S::lanes;
  const int64_t blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
  const int64_t lists = p.kind == Kind::topk ? S::lanes * (p.entries * 3 + blocks) : 0;
  return size_t((4 * vectors + 2 * blocks) * int64_t(sizeof(vec)) + lists * 8) + kMaxParts * sizeof(Part);
}

template <class S>
Row<S>::Row(const Problem& problem, void* memory, const Team& t)
    : p(problem),
      team(t),
      across(runs_across(problem)),
      sparse_target(problem.kind == Kind::topk),
      extra(problem.hard() || problem.z_loss != 0),
      own_q1(extra && (problem.temperature != 1 || sparse_target)),
      by_dot(problem.divergence == Divergence::forward_kl && !sparse_target && problem.kind != Kind::probs && single()),
      vectors(across ? problem.classes : (problem.classes + S::lanes - 1) / S::lanes),
      blocks((vectors + kBlockVectors - 1) / kBlockVectors),
      parts(blocks < 8             ? 1
            : blocks / 4 < t.parts ? int(blocks / 4)
                                   : t.parts),
      lanes(across ? S::lanes : 1) {
  part = static_cast<Part*>(memory);
  auto* floats = reinterpret_cast<float*>(part + kMaxParts);
  for (float** array : {&e_q, &e_q1, &e_m, &sum_p}) *array = floats, floats += vectors * S::lanes;
  for (vec** array : {&used_q, &used_m}) *array = reinterpret_cast<vec*>(floats), floats += blocks * S::lanes;
  auto* words = reinterpret_cast<int64_t*>(floats);
  const int64_t entries = sparse_target ? S::lanes * p.entries : 0;
  entry_q = reinterpret_cast<double*>(words), entry_slope = entry_q + entries;
  patch_next = words + 2 * entries, patch_first = patch_next + entries;
  if (!own_q1) e_q1 = e_q;
  const auto softmax = [this](float* e, vec* used, double temperature) {
    return Softmax<S>{e, used, float(1 / temperature), S::log2_e / temperature, blocks == 1, !across, {}, {}};
  };
  q = softmax(e_q, used_q, p.temperature), q1 = softmax(e_q1, used_q, 1), member = softmax(e_m, used_m, p.target_temperature());
  student_layout = !across ? Layout::along : p.student.class_stride == 1 ? Layout::turned : Layout::direct;
  active = ivec{} - 1;
  for (int lane = 0; lane < lanes; ++lane) label[lane] = 0, set_scales(1, p.hard() ? p.label_share : 0, 1, lane);
  target_layout = !across ? Layout::along : p.targets.class_stride == 1 ? Layout::turned : Layout::direct;
}

template <class S>
template <class D>
void Row<S>::dense() {
  if constexpr (!std::is_same_v<D, ForwardKl>) terms_and_gradient<D>();
  else if (summed) gradient_of_forward_kl<true, true>();
  else by_dot ? gradient_of_forward_kl<false, false>() : gradient_of_forward_kl<false, true>();
}

template <class S>
void Row<S>::run(int64_t first, int64_t rows) {
  row = first, count = rows;
  locate();
  if (!any_active) return finish_unread();
  if (sparse_target) {
    walk_logits();
    switch (p.divergence) {
#define ENSDISTILL_DIVERGENCE(name, type) \
  case Divergence::name: return sparse<type>();
#include "../divergences.def"
    }
  }
  if (p.statistics) walk_member_entropies();
  walk_logits();
  summed = !single() && !walk_codes();
  if (summed) walk_members();
  prepare_scales();
  if (p.statistics) summed ? observe_mixture<true>() : observe_mixture<false>();
  switch (p.divergence) {
#define ENSDISTILL_DIVERGENCE(name, type) \
  case Divergence::name: return dense<type>();
#include "../divergences.def"
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
