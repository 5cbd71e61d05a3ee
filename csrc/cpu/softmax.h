// The softmax of a row, block by block. Included once for each instruction set, after targets.h.
//
// Each block is exponentiated against the largest logit that its lane has seen so far, and remembers it; the
// difference to the row's true maximum is one factor for each block later. So every logit comes from memory once, at any
// width of the row. Nothing is reduced over lanes before the row's end: Along and Across are the same text.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// The sums of a walk over blocks, for each lane: e = exp((x - max) / T), and e times something that the caller chooses.
template <class S>
struct Walk {
  using vec = typename S::vec;
  vec max, sum, dot;

  Walk() : Walk(S::all(-__builtin_inff()), vec{}) {}
  Walk(vec max, vec sum) : max(max), sum(sum), dot{} {}

  // Puts sums that were taken against `max` on the footing of a larger one; -inf stands for nothing seen.
  static ALWAYS_INLINE vec rescale(vec from, vec shift, TwoFloats k) { return S::exp(from - shift, k); }
  // exp(-inf + inf) must not happen where all is masked so far.
  static ALWAYS_INLINE vec shift_of(vec max) { return max == S::all(-__builtin_inff()) ? vec{} : max; }

  void merge(const Walk& other, TwoFloats k) {
    const vec both = S::max(max, other.max), shift = shift_of(both);
    const vec mine = rescale(max, shift, k), others = rescale(other.max, shift, k);
    sum = sum * mine + other.sum * others;
    dot = dot * mine + other.dot * others;
    max = both;
  }
  // Along a row, its lanes become one: every lane then holds the row's numbers.
  void reduce_lanes(TwoFloats k, bool one_max) {
    if (!one_max) {
      const vec all = S::lane_max(max), mine = rescale(max, shift_of(all), k);
      sum *= mine, dot *= mine, max = all;
    }
    sum = S::lane_sum(sum), dot = S::lane_sum(dot);
  }
};

// A row's exponentials in scratch, with the factors that turn them into probabilities.
template <class S>
struct Softmax {
  using vec = typename S::vec;
  float* e;
  vec* used;  // [blocks] the maxima that a block's exponentials were taken against
  float inv_t;
  TwoFloats k;            // log2(e) / T
  bool one_block, along;  // one block: every exponential is against the row's own maximum
  vec max, sum;

  ALWAYS_INLINE vec factor(int64_t block) const {
    if (one_block) return 1 / sum;
    return S::exp(used[block] - max, k) / sum;
  }
  // log of the sum of exp((x - reference) / T) over the row.
  ALWAYS_INLINE vec log_sum(vec reference) const { return (max - reference) * inv_t + S::log(sum); }
  void finish(const Walk<S>& walk) { max = walk.max, sum = walk.sum; }

  // The block's floats x, [count] vectors with the largest in `largest`, become exponentials.
  // before(i) comes before vector i of the exponentials is overwritten.
  template <class Before>
  ALWAYS_INLINE void block(const float* x, int64_t index, int64_t count, vec largest, Walk<S>& walk, Ahead ahead, const Before& before) const {
    const vec max = !one_block ? S::max(walk.max, largest) : along ? S::lane_max(largest) : largest;
    const vec shift = Walk<S>::shift_of(max);
    float* to = e + index * kBlockVectors * S::lanes;
    const TwoFloats scale = k;
    vec sum{};
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) {
      ahead(i);
      before(i);
      const vec v = S::exp(S::load(x + i * S::lanes) - shift, scale);
      S::store(to + i * S::lanes, v);
      sum += v;
    }
    if (one_block) {
      walk.sum = sum;
    } else {
      const vec rescale = Walk<S>::rescale(walk.max, shift, k);
      walk.sum = walk.sum * rescale + sum;
      walk.dot = walk.dot * rescale;
    }
    walk.max = max;
    used[index] = max;
  }
  ALWAYS_INLINE void block(const float* x, int64_t index, int64_t count, vec largest, Walk<S>& walk, Ahead ahead) const {
    block(x, index, count, largest, walk, ahead, [](int64_t) ALWAYS_INLINE_LAMBDA {});
  }
  // Probabilities as they come, normalised by their sum later. A negative one makes the row NaN; past the end they are 0.
  ALWAYS_INLINE void block_of_probabilities(float* x, int64_t index, int64_t count, Walk<S>& walk, Ahead ahead) const {
    float* to = e + index * kBlockVectors * S::lanes;
    for (int64_t i = 0; i < count; ++i) {
      ahead(i);
      const vec v = probability(S::load(x + i * S::lanes));
      S::store(to + i * S::lanes, v);
      walk.sum += v;
    }
    walk.max = used[index] = vec{};
  }
  ALWAYS_INLINE void refuse_unless_distribution() {
    const vec off = sum - 1.f;
    sum = (off < vec{} ? -off : off) <= S::all(float(kSumTolerance)) ? sum : S::all(__builtin_nanf(""));
  }
  static ALWAYS_INLINE vec probability(vec x) {
    const vec end = S::all(-__builtin_inff());
    return x == end ? vec{} : (x < vec{} ? S::all(__builtin_nanf("")) : x);
  }
};

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
