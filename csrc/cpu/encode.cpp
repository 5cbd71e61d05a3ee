// The encoders on the CPU: an ensemble's logits, made small, with the loss as each row's KL divergence.
// Every thread holds a few rows of doubles; nothing of size [N, C] is made but the codes themselves.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../encode_bind.h"
#include "mixture.h"

namespace ensdistill {
namespace {

using namespace doubles;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Ensemble ensemble_of(const EnsembleArguments& a) {
  Ensemble e{checked_logits(a), {}, {}, a.temperature, a.geometric()};
  // Members without weight are never read: a NaN of theirs can't matter.
  double total = 0;
  for (int64_t k = 0; k < a.members(); ++k) {
    const double w = a.weights ? a.weight()[k] : 1.0;
    STD_TORCH_CHECK(w >= 0 && w <= 1e300, "weights: expected finite values of at least 0, got ", w, " for member ", k);
    total += w;
    if (w > 0) e.members.push_back(k), e.weights.push_back(w);
  }
  STD_TORCH_CHECK(total > 0, "weights: expected a sum above 0");
  for (double& w : e.weights) w /= total;
  return e;
}

// Rows that are worth waking a thread for, at a few nanoseconds for each number of a row.
int64_t grain(int64_t numbers_of_a_row) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, numbers_of_a_row)); }

struct Range {
  double low, high;  // of the finite logits
  int64_t masked;
  bool storable;  // not NaN, not +inf, nothing beyond float32 arithmetic, not all masked
};

ENSDISTILL_CLONES Range range_of(const double* z, int64_t classes) {
  Vec low = all(-kMinusInf), high = all(kMinusInf);
  Bits masked{}, wrong{};  // counts, negative
  const int64_t n = padded(classes);
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec v = load(z + c), size = v < 0 ? -v : v;
    const Bits mask = v == kMinusInf, fits = size <= kLargestLogit;
    masked += mask;
    wrong += ~(mask | fits);
    high = larger(high, v);
    low = -larger(-low, mask ? all(kMinusInf) : -v);
  }
  int64_t count = 0, faults = 0;
  for (int i = 0; i < kLanes; ++i) count -= masked[i], faults -= wrong[i];
  count -= n - classes;
  return {-largest(-low), largest(high), count, faults == 0 && count < classes};
}

// Codes of one row, padded as z is, and KL(softmax(z) || softmax(decoded)) at T = 1, from one walk.
ENSDISTILL_CLONES double quantize(const double* z, int64_t n, double high, RowCodes row, uint8_t* codes) {
  const double decoded_high = row.decode(row.code(high)), step = std::abs(row.scale);
  const Bits masks = Bits{} - int64_t(row.scale < 0);
  Vec total{}, decoded_total{}, moved{};
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec v = load(z + c);
    const Bits masked = v == kMinusInf;
    Vec x = (v - double(row.offset)) / row.divisor;
    x = x > row.lowest_code ? x : all(row.lowest_code);
    x = x < 255.0 ? x : all(255);
    const Vec rounded = masked ? all(kRound) : x + kRound, code = rounded - kRound;
    const Bytes bytes = __builtin_convertvector((Bits)rounded & 255, Bytes);
    std::memcpy(codes + c, &bytes, sizeof bytes);
    // Decoded in float32, as by readers: the product, then the sum.
    const Floats product = __builtin_convertvector(code * step, Floats);
    const Vec logit = __builtin_convertvector(product + row.offset, Vec);
    const Vec decoded = ((code == 0.0) & masks) | masked ? all(kMinusInf) : logit;
    const Vec e = exp_of_negative(v - high);
    total += e;
    decoded_total += exp_of_negative(decoded - decoded_high);
    const Vec term = e * ((v - high) - (decoded - decoded_high));
    moved += e > 0.0 ? term : Vec{};  // a masked class has no mass in both, and a difference that is NaN
  }
  return std::max(0.0, sum(moved) / sum(total) + std::log(sum(decoded_total)) - std::log(sum(total)));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_uint8(Tensor logits) {
  const StoredLogits stored = stored_logits("logits", logits, false);
  const int64_t members = logits.size(0), rows = logits.size(1), classes = stored.classes;
  auto [codes, scale, offset, kl] = CodesResult(logits);
  if (rows == 0) return {codes, scale, offset, kl};
  uint8_t* code = codes.mutable_data_ptr<uint8_t>();
  float *s = scale.mutable_data_ptr<float>(), *o = offset.mutable_data_ptr<float>();
  double* error = kl.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, members * rows, grain(classes), [&](int64_t begin, int64_t end) {
    std::vector<double> z(padded(classes));
    std::vector<uint8_t> row(z.size());
    for (int64_t i = begin; i < end; ++i) {
      load_logits(stored, i / rows, i % rows, 0, classes, z.data());
      const Range range = range_of(z.data(), classes);
      RowCodes affine(range.low, range.high, range.masked > 0);
      if (range.storable) {
        error[i] = quantize(z.data(), int64_t(z.size()), range.high, affine, row.data());
      } else {
        affine.scale = affine.offset = float(kNaN), error[i] = kNaN;
        std::fill(row.begin(), row.end(), uint8_t(0));
      }
      s[i] = affine.scale, o[i] = affine.offset;
      std::memcpy(code + i * classes, row.data(), classes);
    }
  });
  return {codes, scale, offset, kl};
}

// The k ids of the largest log_p, falling, ties by the lower id. A heap with the one to go first on top: ids come rising, so
// an equal one never displaces one that is in.
void select_largest(const std::vector<double>& log_p, int64_t classes, int64_t k, std::vector<int64_t>& ids) {
  const auto before = [&](int64_t a, int64_t b) { return log_p[a] > log_p[b] || (log_p[a] == log_p[b] && a < b); };
  ids.resize(k);
  for (int64_t i = 0; i < k; ++i) ids[i] = i;
  std::make_heap(ids.begin(), ids.end(), before);
  for (int64_t c = k; c < classes; ++c)
    if (log_p[c] > log_p[ids.front()]) {
      std::pop_heap(ids.begin(), ids.end(), before);
      ids.back() = c;
      std::push_heap(ids.begin(), ids.end(), before);
    }
  std::sort_heap(ids.begin(), ids.end(), before);
}

struct Sums {
  double mass, negative_entropy, max_log;
};

ENSDISTILL_CLONES Sums sums_of(const double* p, const double* log_p, int64_t n) {
  Vec mass{}, negative_entropy{}, max_log = all(kMinusInf);
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec v = load(p + c), log_v = load(log_p + c), term = v * log_v;
    mass += v;
    negative_entropy += v > 0.0 ? term : Vec{};
    max_log = larger(max_log, log_v);
  }
  return {sum(mass), sum(negative_entropy), largest(max_log)};
}

// Log of the mass outside `ids`, and the KL divergence that spreading it uniformly over `others` classes costs. Clears p and
// log_p at `ids`, so that the rest can be added up: 1 - sum would lose all digits of a small one.
std::pair<double, double> tail_of(MixtureRow& row, const std::vector<int64_t>& ids, int64_t others) {
  for (const int64_t id : ids) row.p[id] = 0, row.log_p[id] = kMinusInf;
  const Sums rest = sums_of(row.p.data(), row.log_p.data(), int64_t(row.p.size()));
  if (rest.mass > 1e-290) {
    const double log_mass = std::log(rest.mass);
    // Inside, the reconstruction is exact up to the rounding of log_probs to float32, which costs its square: 1e-14.
    return {std::min(0.0, log_mass), std::max(0.0, rest.negative_entropy - rest.mass * (log_mass - std::log(double(others))))};
  }
  if (rest.max_log == kMinusInf) return {kMinusInf, 0.0};
  double total = 0;
  for (const double log_p : row.log_p) total += std::exp(log_p - rest.max_log);
  return {rest.max_log + std::log(total), 0.0};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_k(Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                                        std::optional<Tensor> weights, double temperature, std::string combiner, int64_t k) {
  const EnsembleArguments arguments{targets, scale, offset, weights, temperature, value_of<Combiner>(combiner)};
  const Ensemble ensemble = ensemble_of(arguments);
  const int64_t rows = targets.size(1), classes = targets.size(2);
  check_k(arguments, k);
  auto [ids, log_probs, tail, kl] = TopKResult(arguments, k);
  if (rows == 0) return {ids, log_probs, tail, kl};
  const Ids id = ids_in(ids);
  float *log_prob = log_probs.mutable_data_ptr<float>(), *log_tail = tail.mutable_data_ptr<float>();
  double* error = kl.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, rows, grain(classes * int64_t(ensemble.members.size())), [&](int64_t begin, int64_t end) {
    MixtureRow mixture(ensemble, true);
    std::vector<int64_t> chosen;
    for (int64_t n = begin; n < end; ++n) {
      if (!mixture.make(n)) {
        for (int64_t i = 0; i < k; ++i) id.set(n * k + i, i), log_prob[n * k + i] = float(kNaN);
        log_tail[n] = float(kNaN), error[n] = kNaN;
        continue;
      }
      select_largest(mixture.log_p, classes, k, chosen);
      for (int64_t i = 0; i < k; ++i) id.set(n * k + i, chosen[i]), log_prob[n * k + i] = float(std::min(0.0, mixture.log_p[chosen[i]]));
      const auto [log_mass, divergence] = tail_of(mixture, chosen, classes - k);
      log_tail[n] = float(log_mass), error[n] = divergence;
    }
  });
  return {ids, log_probs, tail, kl};
}

std::tuple<Tensor, Tensor, Tensor> encode_counts(Tensor targets, std::optional<Tensor> scale, std::optional<Tensor> offset,
                                                 std::optional<Tensor> weights, double temperature, std::string combiner, int64_t draws, int64_t seed,
                                                 std::optional<Tensor> row_ids) {
  const EnsembleArguments arguments{targets, scale, offset, weights, temperature, value_of<Combiner>(combiner)};
  const Ensemble ensemble = ensemble_of(arguments);
  const int64_t rows = targets.size(1), classes = targets.size(2);
  check_draws(arguments, draws, row_ids);
  const int64_t entries = std::min(draws, classes);
  auto [ids, counts, kl] = CountsResult(arguments, entries);
  if (rows == 0) return {ids, counts, kl};
  const Ids id = ids_in(ids);
  int32_t* count = counts.mutable_data_ptr<int32_t>();
  double* error = kl.mutable_data_ptr<double>();
  const int64_t* row_id = row_ids ? row_ids->const_data_ptr<int64_t>() : nullptr;
  torch::stable::parallel_for(0, rows, grain(classes * int64_t(ensemble.members.size()) + draws * 16), [&](int64_t begin, int64_t end) {
    MixtureRow mixture(ensemble, false);
    for (int64_t n = begin; n < end; ++n) {
      int64_t used = 0;
      double divergence = kNaN;
      if (mixture.make(n)) {
        const std::vector<double>& p = mixture.p;
        divergence = 0;
        const auto put = [&](int64_t c, int64_t times) {
          const double share = double(times) / double(draws);
          divergence += share * (std::log(share) - std::log(p[c]));
          id.set(n * entries + used, c);
          count[n * entries + used++] = int32_t(times);
        };
        // The walk adds the same numbers in the same order, so it ends exactly at `total`.
        double total = 0, below = 0;
        int64_t last = 0;
        for (int64_t c = 0; c < classes; ++c) total += p[c], last = p[c] > 0 ? c : last;
        SortedUniforms uniforms(uint64_t(seed), uint64_t(row_id ? row_id[n] : n), draws);
        double point = uniforms.next() * total;
        for (int64_t c = 0, left = draws; left > 0; ++c) {
          below += p[c];
          // A uniform number that rounding has made 1 belongs to the last class with mass.
          int64_t times = c == last ? left : 0;
          if (c != last)
            while (times < left && point < below)
              if (++times < left) point = uniforms.next() * total;
          if (times > 0) put(c, times);
          left -= times;
        }
        divergence = std::max(0.0, divergence);
      }
      error[n] = divergence;
      for (; used < entries; ++used) id.set(n * entries + used, 0), count[n * entries + used] = 0;
    }
  });
  return {ids, counts, kl};
}

}  // namespace
}  // namespace ensdistill

STABLE_TORCH_LIBRARY_IMPL(ensdistill, CPU, m) {
  m.impl("encode_uint8", TORCH_BOX(&ensdistill::encode_uint8));
  m.impl("encode_top_k", TORCH_BOX(&ensdistill::encode_top_k));
  m.impl("encode_counts", TORCH_BOX(&ensdistill::encode_counts));
}
