// The floor of a shape: a loop that reads every input once, writes the gradient's buffer once, and computes nothing worth
// the name. No loss can be faster than this on the same machine, unless its data was in a cache before.
#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kBlock = 16384;  // words; 64 KiB stay in the L2 cache while the next members are added
constexpr int kTogether = 8;       // members read side by side: the prefetchers follow that many streams

// All streams advance together: leaving one after a few KiB for the next would restart the prefetchers each time.
template <int members>
void add(const int32_t* from, const int32_t* const* inputs, int64_t first, int64_t count, int32_t* to) {
  if constexpr (members > 0) {
    const int32_t* input[members];
    for (int k = 0; k < members; ++k) input[k] = inputs[k] + first;
#pragma GCC ivdep  // `to` may be `from`, at the same index
    for (int64_t i = 0; i < count; ++i) {
      int32_t sum = from[i];
      for (int k = 0; k < members; ++k) sum += input[k][i];
      to[i] = sum;
    }
  }
}

void add_some(int64_t members, const int32_t* from, const int32_t* const* inputs, int64_t first, int64_t count, int32_t* to) {
  switch (members) {
    case 1: return add<1>(from, inputs, first, count, to);
    case 2: return add<2>(from, inputs, first, count, to);
    case 3: return add<3>(from, inputs, first, count, to);
    case 4: return add<4>(from, inputs, first, count, to);
    case 5: return add<5>(from, inputs, first, count, to);
    case 6: return add<6>(from, inputs, first, count, to);
    case 7: return add<7>(from, inputs, first, count, to);
    default: return add<kTogether>(from, inputs, first, count, to);
  }
}

}  // namespace

// Words begin..end of the sum of the student [words] and of the members inputs[k] [member_words <= words], as integers:
// any bit pattern is as good as another then. The sum goes to `out` [words], or nowhere where `out` is null.
extern "C" int32_t floor_loop(const int32_t* student, const int32_t* const* inputs, int64_t members, int64_t member_words, int32_t* out,
                              int64_t begin, int64_t end) {
  static thread_local int32_t scratch[kBlock];
  int32_t result = 0;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const int64_t shared = std::clamp<int64_t>(member_words - first, 0, count);
    int32_t* to = out ? out + first : scratch;
    for (int64_t k = 0; k < members; k += kTogether)
      add_some(std::min<int64_t>(members - k, kTogether), k ? to : student + first, inputs + k, first, shared, to);
    std::copy(student + first + shared, student + first + count, to + shared);
    result ^= to[0] ^ to[count - 1];  // returned, so that no compiler can leave the work out
  }
  return result;
}
