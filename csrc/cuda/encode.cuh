// The encoders' kernels: a block for each row, everything in double precision. Sums have a fixed order and places are sorted or
// counted in order, so the same input gives the same bits.
#pragma once
#include "mixture.cuh"

namespace ensdistill::cuda {

// --- one byte for a logit

struct CodesCall {
  StoredLogits logits;
  int64_t members, rows;
  uint8_t* codes;
  float *scale, *offset;
  double* kl;
};

struct Range {
  double low, high;    // of the finite logits
  int masked, faults;  // faults: NaN, +inf, and numbers beyond float32's arithmetic

  ENSDISTILL_DEVICE void see(double x) {
    if (x == minus_infinity<double>()) ++masked;
    else if (!(x >= -kLargestLogit && x <= kLargestLogit)) ++faults;
    else low = -larger(-low, -x), high = larger(high, x);
  }
};
struct Widen {
  ENSDISTILL_DEVICE Range operator()(const Range& a, const Range& b) const {
    return {-larger(-a.low, -b.low), larger(a.high, b.high), a.masked + b.masked, a.faults + b.faults};
  }
};
// Of the exponentials of the given logits and of the decoded ones, and of the former times the difference of the two.
struct CodeSums {
  double given, decoded, moved;
};
struct AddCodeSums {
  ENSDISTILL_DEVICE CodeSums operator()(const CodeSums& a, const CodeSums& b) const {
    return {a.given + b.given, a.decoded + b.decoded, a.moved + b.moved};
  }
};

__global__ void __launch_bounds__(kEncodeThreads, 2) encode_uint8_rows(const __grid_constant__ CodesCall call) {
  __shared__ __align__(16) unsigned char slots[kReductionBytes];
  Block block(int(blockDim.x), slots);
  const int classes = int(call.logits.classes);
  for (int64_t i = blockIdx.x; i < call.members * call.rows; i += gridDim.x) {
    const int64_t start = call.logits.start_of(i / call.rows, i % call.rows);
    uint8_t* const codes = call.codes + i * classes;
    const Range none{-minus_infinity<double>(), minus_infinity<double>(), 0, 0};
    Range range = none;
    for (int c = block.rank; c < classes; c += block.size) range.see(number_at(call.logits.data, call.logits.type, start + c));
    range = block.reduce(range, none, Widen{});
    if (range.faults > 0 || range.masked == classes) {
      for (int c = block.rank; c < classes; c += block.size) codes[c] = 0;
      if (block.rank == 0) call.scale[i] = call.offset[i] = not_a_number<float>(), call.kl[i] = not_a_number<double>();
      continue;
    }
    const RowCodes affine(range.low, range.high, range.masked > 0);
    const double decoded_high = affine.decode(affine.code(range.high));
    CodeSums sums{0, 0, 0};
    for (int c = block.rank; c < classes; c += block.size) {
      const double x = number_at(call.logits.data, call.logits.type, start + c);
      const uint8_t code = affine.code(x);
      codes[c] = code;
      const double given = x - range.high, decoded = affine.decode(code) - decoded_high, e = exponential_or_zero(given);
      sums.given += e;
      sums.decoded += exponential_or_zero(decoded);
      if (e > 0) sums.moved += e * (given - decoded);  // a masked class has no mass in both, and a difference that is NaN
    }
    sums = block.reduce(sums, CodeSums{0, 0, 0}, AddCodeSums{});
    if (block.rank > 0) continue;
    call.scale[i] = affine.scale, call.offset[i] = affine.offset;
    call.kl[i] = larger(0.0, sums.moved / sums.given + logarithm(sums.decoded) - logarithm(sums.given));
  }
}

// --- the likeliest classes

// The head of a block's shared memory.
struct __align__(16) EncodeMemory {
  unsigned char slots[kReductionBytes];
  int64_t scan[64];
  int used;
  int filled;            // places
  int bin, above, same;  // where a histogram crosses the wanted count
  int bins[256];
};

struct TopKCall : EnsembleCall {
  int k, places;         // places: a power of two
  Scratch keys, chosen;  // uint64 [classes]; uint64 [places], then int [places]
  Ids ids;
  float *log_probs, *tail;
  double* kl;
};

// Numbers as integers of the same order. No number becomes 0.
ENSDISTILL_DEVICE uint64_t key_of(double x) {
  const auto bits = uint64_t(__double_as_longlong(x + 0.0));  // one zero, not two
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}
ENSDISTILL_DEVICE double number_of(uint64_t key) { return __longlong_as_double(static_cast<long long>(key >> 63 ? key ^ uint64_t(1) << 63 : ~key)); }

// The largest: all whose bits under the mask exceed `prefix`, and the first `take` of the `same` that equal it.
struct Threshold {
  uint64_t prefix, mask;
  int take, same;
};

// Byte by byte from the highest, a histogram of the keys that agree so far locates the k-th largest.
ENSDISTILL_DEVICE Threshold find_threshold(const uint64_t* keys, int classes, int k, const Block& block, EncodeMemory& shared) {
  Threshold t{0, 0, k, classes};
  for (int shift = 56; shift >= 0 && t.same > t.take; shift -= 8) {
    for (int b = block.rank; b < 256; b += block.size) shared.bins[b] = 0;
    __syncthreads();
    int bin = 0, run = 0;  // high bytes are mostly the same: neighbours are counted before they go to the histogram
    for (int c = block.rank; c < classes; c += block.size) {
      const uint64_t key = keys[c];
      if ((key & t.mask) != t.prefix) continue;
      const int b = int(key >> shift & 255);
      if (b != bin && run > 0) atomicAdd(&shared.bins[bin], run), run = 0;
      bin = b, ++run;
    }
    if (run > 0) atomicAdd(&shared.bins[bin], run);
    __syncthreads();
    if (threadIdx.x < 32) {  // eight bins a lane, from the highest
      const int lane = int(threadIdx.x), highest = 255 - 8 * lane;
      int count = 0;
      for (int i = 0; i < 8; ++i) count += shared.bins[highest - i];
      int through = count;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int below = from_lane_below(through, distance);
        if (lane >= distance) through += below;
      }
      int above = through - count;
      if (above < t.take && t.take <= through) {
        int b = highest;
        while (above + shared.bins[b] < t.take) above += shared.bins[b--];
        shared.bin = b, shared.above = above, shared.same = shared.bins[b];
      }
    }
    __syncthreads();
    t.prefix |= uint64_t(shared.bin) << shift, t.mask |= uint64_t(255) << shift;
    t.take -= shared.above, t.same = shared.same;
  }
  return t;
}

// Largest first, ties by the lower id. A power of two of them.
ENSDISTILL_DEVICE void sort_chosen(uint64_t* key, int* id, int count, const Block& block) {
  for (int size = 2; size <= count; size *= 2)
    for (int distance = size / 2; distance > 0; distance /= 2) {
      for (int i = block.rank; i < count / 2; i += block.size) {
        const int a = 2 * i - (i & (distance - 1)), b = a + distance;
        const uint64_t x = key[a], y = key[b];
        const int m = id[a], n = id[b];
        const bool wrong = x < y || (x == y && m > n);
        if (wrong == ((a & size) == 0)) key[a] = y, key[b] = x, id[a] = n, id[b] = m;
      }
      __syncthreads();
    }
}

struct TailSums {
  double mass, moved;  // of exp(log p - max), and of that times log p - max
};
struct AddTailSums {
  ENSDISTILL_DEVICE TailSums operator()(const TailSums& a, const TailSums& b) const { return {a.mass + b.mass, a.moved + b.moved}; }
};

__global__ void __launch_bounds__(kEncodeThreads, 2) encode_top_k_rows(const __grid_constant__ TopKCall call) {
  extern __shared__ __align__(16) unsigned char memory[];
  EncodeMemory& shared = *reinterpret_cast<EncodeMemory*>(memory);
  Block block(int(blockDim.x), shared.slots);
  Scan scan{shared.scan};
  Mixture mixture(call, block, memory, &shared.used);
  uint64_t* const keys = call.memory_of<uint64_t>(call.keys, memory);
  uint64_t* const key = call.memory_of<uint64_t>(call.chosen, memory);
  int* const id = reinterpret_cast<int*>(key + call.places);
  const int classes = mixture.classes(), k = call.k;
  const double minus_inf = minus_infinity<double>();

  for (int64_t n = blockIdx.x; n < call.rows; n += gridDim.x) {
    const int64_t out = n * k;
    if (!mixture.measure(n)) {
      for (int i = block.rank; i < k; i += block.size) call.ids.set(out + i, i), call.log_probs[out + i] = not_a_number<float>();
      if (block.rank == 0) call.tail[n] = not_a_number<float>(), call.kl[n] = not_a_number<double>();
      continue;
    }
    for (int c = block.rank; c < classes; c += block.size) keys[c] = key_of(mixture.log_prob(c));  // each thread walks its own
    const Threshold t = find_threshold(keys, classes, k, block, shared);

    // The chosen in any order, since they will be sorted; of those that tie for the last places, the first.
    for (int i = k + block.rank; i < call.places; i += block.size) key[i] = 0, id[i] = 0x7fffffff;
    if (block.rank == 0) shared.filled = 0;
    __syncthreads();
    double max = minus_inf;  // of the others
    int same_before = 0;
    for (int first = 0; first < classes; first += block.size) {
      const int c = first + block.rank;
      const uint64_t mine = c < classes ? keys[c] : 0, high = mine & t.mask;
      const bool same = c < classes && high == t.prefix;
      bool wanted = same || (c < classes && high > t.prefix);
      if (t.same > t.take) {
        int of_block;
        const int before = same_before + scan.before(int(same), &of_block);
        same_before += of_block;
        if (same) wanted = before < t.take;
      }
      if (wanted) {
        const int place = atomicAdd(&shared.filled, 1);
        key[place] = mine, id[place] = c;
        keys[c] = 0;
      } else if (c < classes) {
        max = larger(max, number_of(mine));
      }
    }
    max = block.reduce(max, minus_inf, Larger<double>{});
    sort_chosen(key, id, call.places, block);
    for (int i = block.rank; i < k; i += block.size) {
      const double log_p = number_of(key[i]);
      call.ids.set(out + i, id[i]);
      call.log_probs[out + i] = float(log_p < 0 ? log_p : 0.0);
    }

    // The others' mass, and the divergence from spreading it evenly; relative to the largest, which may be below all doubles.
    // Inside, the reconstruction is exact up to the rounding of log_probs to float32, which costs its square: 1e-14.
    TailSums rest{0, 0};
    if (max > minus_inf)
      for (int c = block.rank; c < classes; c += block.size) {
        if (keys[c] == 0) continue;
        const double x = number_of(keys[c]) - max, e = exponential_or_zero(x);
        rest.mass += e;
        if (e > 0) rest.moved += e * x;
      }
    rest = block.reduce(rest, TailSums{0, 0}, AddTailSums{});
    if (block.rank == 0) {
      const double log_mass = logarithm(rest.mass), log_tail = max + log_mass;
      const bool any = max > minus_inf;
      call.tail[n] = float(any ? (log_tail < 0 ? log_tail : 0.0) : minus_inf);
      call.kl[n] = any ? larger(0.0, exponential(max) * (rest.moved - rest.mass * (log_mass - logarithm(double(classes - k))))) : 0.0;
    }
  }
}

// --- sampled counts

struct CountsCall : EnsembleCall {
  int64_t draws, entries;
  uint64_t seed;
  const int64_t* row_ids;  // [rows], or null
  Scratch below, times;    // int64 [classes], the mass up to and with a class; int [classes]
  Ids ids;
  int32_t* counts;
  double* kl;
};

// Masses are added as whole numbers: any order gives the same sum, and it never falls. 2^-62 is less than a sum of doubles near
// 1 can tell apart.
constexpr double kMassUnit = 0x1p62;

// The first class up to which there is more mass than `point`; for one that rounding has made the whole, the last with mass.
ENSDISTILL_DEVICE int class_at(double point, const int64_t* below, int classes) {
  const int64_t total = below[classes - 1], at = int64_t(point * double(total)), inside = at < total ? at : total - 1;
  int first = 0, last = classes - 1;
  while (first < last) {
    const int middle = first + (last - first) / 2;
    if (below[middle] > inside) last = middle;
    else first = middle + 1;
  }
  return first;
}

__global__ void __launch_bounds__(kEncodeThreads, 2) encode_counts_rows(const __grid_constant__ CountsCall call) {
  extern __shared__ __align__(16) unsigned char memory[];
  EncodeMemory& shared = *reinterpret_cast<EncodeMemory*>(memory);
  Block block(int(blockDim.x), shared.slots);
  Scan scan{shared.scan};
  Mixture mixture(call, block, memory, &shared.used);
  int64_t* const below = call.memory_of<int64_t>(call.below, memory);
  int* const times = call.memory_of<int>(call.times, memory);
  const int classes = mixture.classes();

  for (int64_t n = blockIdx.x; n < call.rows; n += gridDim.x) {
    const int64_t out = n * call.entries;
    const bool fine = mixture.measure(n);
    int64_t used = 0;
    double divergence = 0;
    if (fine) {
      int64_t mass = 0;
      for (int first = 0; first < classes; first += block.size) {
        const int c = first + block.rank;
        const int64_t mine = c < classes ? int64_t(mixture.prob(c) * kMassUnit + 0.5) : 0;
        int64_t of_block;
        const int64_t before = mass + scan.before(mine, &of_block);
        if (c < classes) below[c] = before + mine, times[c] = 0;
        mass += of_block;
      }
      __syncthreads();
      // Two uniform numbers come at once. Where the part above has shrunk by U^(1/n) for each draw, the logarithms add up.
      const auto row_id = uint64_t(call.row_ids ? call.row_ids[n] : n);
      double log_above = 0;
      for (int64_t first = 0; first < call.draws; first += 2 * block.size) {
        const int64_t i = first + 2 * block.rank, left = call.draws - i;
        uint64_t bits[2];
        philox(call.seed, row_id, uint64_t(i / 2), bits);
        const double a = left > 0 ? logarithm(uniform_of(bits[0])) / double(left) : 0.0;
        const double b = left > 1 ? logarithm(uniform_of(bits[1])) / double(left - 1) : 0.0;
        double of_block;
        const double before = log_above + scan.before(a + b, &of_block);
        log_above += of_block;
        if (left > 0) atomicAdd(&times[class_at(-expm1(before + a), below, classes)], 1);
        if (left > 1) atomicAdd(&times[class_at(-expm1(before + a + b), below, classes)], 1);
      }
      __syncthreads();
      for (int first = 0; first < classes; first += block.size) {
        const int c = first + block.rank, mine = c < classes ? times[c] : 0;
        int of_block;
        const int64_t place = used + scan.before(int(mine > 0), &of_block);
        used += of_block;
        if (mine == 0) continue;
        call.ids.set(out + place, c);
        call.counts[out + place] = mine;
        const double share = double(mine) / double(call.draws);
        divergence += share * (logarithm(share) - mixture.log_prob(c));
      }
      divergence = block.reduce(divergence, 0.0, Add<double>{});
    }
    for (int64_t i = used + block.rank; i < call.entries; i += block.size) call.ids.set(out + i, 0), call.counts[out + i] = 0;
    if (block.rank == 0) call.kl[n] = fine ? larger(0.0, divergence) : not_a_number<double>();
  }
}

}  // namespace ensdistill::cuda
