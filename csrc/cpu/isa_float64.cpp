// The same kernel in scalar double precision, for float64 inputs: gradcheck, and whoever needs the digits.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "problem.h"

#define ENSDISTILL_ISA float64
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace ensdistill {
namespace float64 {

using Bf16 = torch::headeronly::BFloat16;
using F16 = torch::headeronly::Half;

struct Scalar {
  static constexpr int lanes = 1;
  using real = double;
  using vec = double;
  using ivec = int64_t;

  static double all(double x) { return x; }
  static double load(const double* p) { return *p; }
  static double load(const float* p) { return *p; }
  static double load(const Bf16* p) { return float(*p); }
  static double load(const F16* p) { return float(*p); }
  static double load(const uint8_t* p) { return *p; }
  template <class T>
  static double load_part(const T*, int64_t, double fill) {
    return fill;  // one lane is never partial
  }
  template <class T>
  static void store(T* p, double v) {
    if constexpr (std::is_same_v<T, double>) *p = v;
    else *p = T(float(v));
  }
  template <class T>
  static void store_part(T*, double, int64_t) {}
  static int64_t lane_index() { return 0; }
  static double max(double a, double b) { return a > b ? a : b; }
  static double lane_max(double v) { return v; }
  static double lane_sum(double v) { return v; }
  static double exp(double x) { return std::exp(x); }
  static double log(double x) { return std::log(x); }
};

}  // namespace float64
}  // namespace ensdistill

#include "row_kernel.h"
#include "rows.h"

namespace ensdistill {
void rows_float64(const Problem& problem, int64_t begin, int64_t end, void* scratch) { float64::rows<float64::Scalar>(problem, begin, end, scratch); }
}  // namespace ensdistill
