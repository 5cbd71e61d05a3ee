#include "mixture.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>

namespace ensdistill {
namespace {

using namespace doubles;

template <class T>
void widen(const void* data, int64_t at, int64_t count, double* out) {
  const T* in = static_cast<const T*>(data) + at;
  for (int64_t c = 0; c < count; ++c) out[c] = static_cast<double>(static_cast<std::conditional_t<sizeof(T) == 8, double, float>>(in[c]));
}

ENSDISTILL_CLONES double largest_of(const double* x, int64_t n) {
  Vec max = load(x);
  for (int64_t c = kLanes; c < n; c += kLanes) max = larger(max, load(x + c));
  return largest(max);
}

// shifted = (x - max) / temperature and terms = exp(shifted), which may be the same memory, and that of x; returns their sum.
ENSDISTILL_CLONES double exponentials(const double* x, int64_t n, double max, double temperature, double* shifted, double* terms) {
  Vec total{};
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec v = (load(x + c) - max) / temperature, e = exp_of_negative(v);
    store(shifted + c, v);
    store(terms + c, e);
    total += e;
  }
  return sum(total);
}

ENSDISTILL_CLONES void add_scaled(const double* x, int64_t n, double factor, double* out) {
  for (int64_t c = 0; c < n; c += kLanes) store(out + c, load(out + c) + load(x + c) * factor);
}

ENSDISTILL_CLONES void logarithms(const double* p, int64_t n, double* out) {
  for (int64_t c = 0; c < n; c += kLanes) store(out + c, log_of_normal(load(p + c)));
}

}  // namespace

void load_logits(const StoredLogits& logits, int64_t member, int64_t row, int64_t first, int64_t count, double* out) {
  const int64_t at = logits.start_of(member, row) + first;
  switch (logits.type) {
    case Element::f64: widen<double>(logits.data, at, count, out); break;
    case Element::f32: widen<float>(logits.data, at, count, out); break;
    case Element::bf16: widen<torch::headeronly::BFloat16>(logits.data, at, count, out); break;
    case Element::f16: widen<torch::headeronly::Half>(logits.data, at, count, out); break;
    case Element::u8: {
      const float scale = logits.scale_of(member, row), offset = logits.offset_of(member, row);
      const uint8_t* codes = static_cast<const uint8_t*>(logits.data) + at;
      if (count < 512) {  // too few to pay for a table
        for (int64_t c = 0; c < count; ++c) out[c] = decoded_logit(scale, offset, codes[c]);
        break;
      }
      double table[256];
      for (int code = 0; code < 256; ++code) table[code] = decoded_logit(scale, offset, code);
      for (int64_t c = 0; c < count; ++c) out[c] = table[codes[c]];
    }
  }
  std::fill(out + count, out + padded(count), kMinusInf);
}

MixtureRow::MixtureRow(const Ensemble& ensemble, bool with_logs)
    : p(padded(ensemble.logits.classes)),
      log_p(with_logs ? p.size() : 0),
      ensemble_(ensemble),
      padded_(int64_t(p.size())),
      x_(p.size()),
      largest_(ensemble.members.size()),
      log_sum_(ensemble.members.size()) {}

bool MixtureRow::make(int64_t row) {
  const int64_t members = int64_t(ensemble_.members.size());
  if (ensemble_.geometric || members == 1) {
    mean_logits(row);
    // Where log p is wanted, the shifted logits stay: they are all it takes, also where p underflows.
    const double total = softmax_terms(0, log_p.empty() ? x_.data() : log_p.data(), p.data());
    if (!(total > 0)) return false;
    for (double& x : p) x /= total;
    for (double& x : log_p) x -= log_sum_[0];
    return true;
  }
  std::fill(p.begin(), p.end(), 0.0);
  for (int64_t k = 0; k < members; ++k) {
    load_logits(ensemble_.logits, ensemble_.members[k], row, 0, ensemble_.logits.classes, x_.data());
    const double total = softmax_terms(k, x_.data(), x_.data());
    if (!(total > 0)) return false;
    add_scaled(x_.data(), padded_, ensemble_.weights[k] / total, p.data());
  }
  if (log_p.empty()) return true;
  logarithms(p.data(), padded_, log_p.data());
  for (int64_t c = 0; c < padded_; ++c)
    if (p[c] < 1e-290) log_p[c] = c < ensemble_.logits.classes ? log_of_little(row, c) : kMinusInf;
  return true;
}

// Of x_, which may be overwritten. NaN where a value is NaN or +inf, or all are -inf.
double MixtureRow::softmax_terms(int64_t member, double* shifted, double* terms) {
  const double max = largest_[member] = largest_of(x_.data(), padded_);
  const double total = exponentials(x_.data(), padded_, max, ensemble_.temperature, shifted, terms);
  log_sum_[member] = std::log(total);
  return total;
}

void MixtureRow::mean_logits(int64_t row) {
  const auto& members = ensemble_.members;
  const int64_t classes = ensemble_.logits.classes;
  load_logits(ensemble_.logits, members[0], row, 0, classes, x_.data());
  if (members.size() == 1) return;
  for (double& x : x_) x *= ensemble_.weights[0];
  constexpr int64_t block = 1024;  // the other members' logits need no row of their own
  double other[block];
  for (int64_t first = 0; first < classes; first += block) {
    const int64_t count = std::min(block, classes - first);
    for (size_t k = 1; k < members.size(); ++k) {
      load_logits(ensemble_.logits, members[k], row, first, count, other);
      add_scaled(other, padded(count), ensemble_.weights[k], x_.data() + first);
    }
  }
}

// log p of a class to which no member gives a mass that a double holds well: logsumexp over the members.
double MixtureRow::log_of_little(int64_t row, int64_t c) const {
  double max = kMinusInf, total = 0, block[kLanes];
  for (int pass = 0; pass < 2; ++pass)
    for (size_t k = 0; k < ensemble_.members.size(); ++k) {
      load_logits(ensemble_.logits, ensemble_.members[k], row, c, 1, block);
      const double x = (block[0] - largest_[k]) / ensemble_.temperature - log_sum_[k] + std::log(ensemble_.weights[k]);
      if (pass == 0) max = std::max(max, x);
      else if (max > kMinusInf) total += std::exp(x - max);
    }
  return max > kMinusInf ? max + std::log(total) : max;
}

}  // namespace ensdistill
