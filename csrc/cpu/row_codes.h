// The first walk of members that are stored as codes, where the instruction set looks numbers up. Included after row_logits.h.
//
// A code c = 16 h + l of a row with step d stands for exp((c - 255) d / T) = exp((16 h - 240) d / T) * exp((l - 15) d / T), up to a
// factor that the softmax takes out: two tables of 16 numbers, none above 1, and one product instead of an exponential. It is
// so cheap that nothing is kept between the pass that adds up and the one that, knowing all sums, makes the mixture.

namespace ensdistill {
namespace ENSDISTILL_ISA {

template <class S>
struct CodeTable {
  using vec = typename S::vec;
  const uint8_t* codes;
  vec high, low;

  CodeTable() = default;
  CodeTable(const Source<S>& source, TwoFloats k) : codes(static_cast<const uint8_t*>(source.data)) {
    const vec lane = __builtin_convertvector(S::lane_index(), vec), d = source.step;
    high = S::exp((lane * 16 - 240) * d, k);
    low = S::exp((lane - 15) * d, k);
  }
  ALWAYS_INLINE vec at(int64_t i) const { return of(codes + i * S::lanes); }
  // The last vector of a row: lanes past the end are 0.
  ALWAYS_INLINE vec part(int64_t i, int64_t count) const {
    uint8_t buffer[S::lanes] = {};
    std::memcpy(buffer, codes + i * S::lanes, count);
    return S::lane_index() < typename S::ivec{} + int32_t(count) ? of(buffer) : vec{};
  }

 private:
  ALWAYS_INLINE vec of(const uint8_t* from) const {
    const auto c = S::integers(from);
    return S::look_up(high, c >> 4) * S::look_up(low, c);
  }
};

// The weighted sum of several members' probabilities; the weights and their divisors are in the tables. Members from the
// second group on are added to the first's sum.
template <class S>
template <int kMembers>
void Row<S>::mix_codes(int64_t k, const CodeTable<S>* given) {
  const int64_t whole = p.classes / S::lanes;
  each_range([&, this](Part&, int64_t begin, int64_t end) {
    CodeTable<S> table[kMembers];
    for (int m = 0; m < kMembers; ++m) table[m] = given[m];
    each_block(begin, end, [&](int64_t, int64_t first, int64_t n) {
      const int64_t last = first + n < whole ? first + n : whole;
      for (int64_t i = first; i < last; ++i) {
        vec sum = k > 0 ? S::load(e_m + i * S::lanes) : vec{};
#pragma GCC unroll 4
        for (int m = 0; m < kMembers; ++m) sum += table[m].at(i);
        S::store(e_m + i * S::lanes, sum);
      }
      if (first + n > whole) {
        vec sum = k > 0 ? S::load(e_m + whole * S::lanes) : vec{};
        for (int m = 0; m < kMembers; ++m) sum += table[m].part(whole, p.classes - whole * S::lanes);
        S::store(e_m + whole * S::lanes, sum);
      }
    });
  });
}

// False where it can't be done this way: other targets, masked classes, a row whose largest code is far from 255.
template <class S>
bool Row<S>::walk_codes() {
  if constexpr (!S::looks_up) {
    return false;
  } else {
    constexpr int kMost = 32;
    constexpr float kLeastSum = 1e-3f;  // below it numbers much smaller than the row's largest have lost bits
    if (across || p.targets.type != Element::u8 || p.members_used > kMost) return false;
    CodeTable<S> tables[kMost];
    const int64_t whole = p.classes / S::lanes;
    for (int64_t k = 0; k < p.members_used; ++k) {
      const Source<S> source = target(k);
      if (source.zero_value[0] != source.offset[0]) return false;  // masked classes, or an offset that is no number
      const CodeTable<S> table(source, member.k);
      each_range([&, this](Part& part, int64_t begin, int64_t end) {
        each_block(begin, end, [&](int64_t, int64_t first, int64_t n) {
          const int64_t last = first + n < whole ? first + n : whole;
          vec even{}, odd{};
          int64_t i = first;
          for (; i + 2 <= last; i += 2) {
            __builtin_prefetch(table.codes + (i + 2 * kAhead) * S::lanes);
            even += table.at(i), odd += table.at(i + 1);
          }
          if (i < last) even += table.at(i);
          if (first + n > whole) odd += table.part(whole, p.classes - whole * S::lanes);
          part.member.sum += even + odd;
          part.member.max = vec{};  // all parts are relative to the same number
        });
      });
      const vec sum = walk_over(&Part::member, member.k).sum;
      if (!(sum[0] >= kLeastSum) || !(source.offset[0] - source.offset[0] == 0)) return false;
      tables[k] = table;
      tables[k].high = table.high * (S::all(float(p.weights[k])) / sum);
    }
    int64_t k = 0;
    for (; k + 4 <= p.members_used; k += 4) mix_codes<4>(k, tables + k);
    if (k + 2 <= p.members_used) mix_codes<2>(k, tables + k), k += 2;
    if (k < p.members_used) mix_codes<1>(k, tables + k);
    // e_m holds probabilities already.
    member.max = vec{}, member.sum = S::all(1);
    for (int64_t b = 0; b < blocks; ++b) used_m[b] = vec{};
    last_weight = S::all(1);
    return true;
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
