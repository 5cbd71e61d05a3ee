// Vectors of floats for one instruction set, from the compiler's own vector types, so the row kernel is written once.
// Included by one translation unit for each set, which defines ENSDISTILL_ISA (a namespace) and ENSDISTILL_LANES
// after selecting the target. Everything is forced inline: nothing here may leak to a machine that can't run it.
#include <cstring>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define ALWAYS_INLINE_LAMBDA __attribute__((always_inline))

namespace ensdistill {
namespace ENSDISTILL_ISA {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// A double as the sum of two floats.
struct TwoFloats {
  float high, low;
  TwoFloats() = default;
  constexpr TwoFloats(double x) : high(float(x)), low(float(x - float(x))) {}
};

struct Simd {
  static constexpr int lanes = ENSDISTILL_LANES;
  using real = float;
  typedef float vec __attribute__((vector_size(4 * ENSDISTILL_LANES)));
  typedef int32_t ivec __attribute__((vector_size(4 * ENSDISTILL_LANES)));
  typedef uint32_t uvec __attribute__((vector_size(4 * ENSDISTILL_LANES)));
  typedef uint16_t hvec __attribute__((vector_size(2 * ENSDISTILL_LANES)));
  typedef uint8_t bvec __attribute__((vector_size(ENSDISTILL_LANES)));

  static constexpr double log2_e = 1.4426950408889634074;
  static constexpr TwoFloats kLog2E{log2_e};

  static ALWAYS_INLINE vec all(float x) { return vec{} + x; }

  static ALWAYS_INLINE vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static ALWAYS_INLINE vec load(const Bf16* p) {
    hvec h;
    std::memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
  }
  static ALWAYS_INLINE vec load(const F16* p) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif ENSDISTILL_LANES == 8 && defined(__x86_64__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    vec v;
    for (int i = 0; i < lanes; ++i) v[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(p[i].bits);
    return v;
#endif
  }
  static ALWAYS_INLINE vec load(const uint8_t* p) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif ENSDISTILL_LANES == 8 && defined(__x86_64__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    bvec b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vec);
#endif
  }

  static ALWAYS_INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
  static ALWAYS_INLINE void store(Bf16* p, vec v) {
    // Round to nearest even; a NaN keeps its top bits and becomes quiet.
    const uvec u = (uvec)v;
    const uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const uvec nan = (u >> 16) | 0x40;
    const hvec h = __builtin_convertvector(v == v ? rounded : nan, hvec);
    std::memcpy(p, &h, sizeof h);
  }
  static ALWAYS_INLINE void store(F16* p, vec v) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif ENSDISTILL_LANES == 8 && defined(__x86_64__)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < lanes; ++i) p[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(v[i]);
#endif
  }

  // Tables of 16 floats in one vector: `look_up` takes, for each lane, the number at the low four bits of `at`.
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
  static constexpr bool looks_up = true;
  static ALWAYS_INLINE ivec integers(const uint8_t* p) { return (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static ALWAYS_INLINE vec look_up(vec table, ivec at) { return (vec)_mm512_permutexvar_ps((__m512i)at, (__m512)table); }
#else
  static constexpr bool looks_up = false;
#endif

  // The last, partial vector of a row: lanes past the end hold `fill`.
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
  static ALWAYS_INLINE vec load_part(const float* p, int64_t count, float fill) {
    return (vec)_mm512_mask_loadu_ps((__m512)all(fill), __mmask16((1u << count) - 1), p);
  }
  static ALWAYS_INLINE void store_part(float* p, vec v, int64_t count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v); }
  template <class T>
  static ALWAYS_INLINE vec load_part(const T* p, int64_t count, float fill) {
    const __mmask16 mask = __mmask16((1u << count) - 1);
    T buffer[lanes];
    if constexpr (sizeof(T) == 1) _mm_storeu_si128((__m128i*)buffer, _mm_maskz_loadu_epi8(mask, p));
    else _mm256_storeu_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16(mask, p));
    return (vec)_mm512_mask_blend_ps(mask, (__m512)all(fill), (__m512)load(buffer));
  }
  template <class T>
  static ALWAYS_INLINE void store_part(T* p, vec v, int64_t count) {
    T buffer[lanes];
    store(buffer, v);
    _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), _mm256_loadu_si256((const __m256i*)buffer));
  }
#else
  template <class T>
  static ALWAYS_INLINE vec load_part(const T* p, int64_t count, float fill) {
    T buffer[lanes] = {};
    std::memcpy(buffer, p, count * sizeof(T));
    const vec v = load(buffer);
    return lane_index() < ivec{} + int32_t(count) ? v : all(fill);
  }
  template <class T>
  static ALWAYS_INLINE void store_part(T* p, vec v, int64_t count) {
    T buffer[lanes];
    store(buffer, v);
    std::memcpy(p, buffer, count * sizeof(T));
  }
#endif

  static ALWAYS_INLINE ivec lane_index() {
    ivec v;
    for (int i = 0; i < lanes; ++i) v[i] = i;
    return v;
  }

  static ALWAYS_INLINE vec abs(vec x) { return (vec)((ivec)x & 0x7fffffff); }

  // 1 / x to a unit or two in the last place, for x from 1 on, far from the largest float. NaN stays.
  static ALWAYS_INLINE vec reciprocal(vec x) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)  // where a division takes as long as an exponential
    const vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y * (2.f - x * y);
#else
    return 1 / x;
#endif
  }

  static ALWAYS_INLINE vec max(vec a, vec b) { return a > b ? a : b; }

  // Whether a comparison holds in any lane.
  static ALWAYS_INLINE bool any(ivec holds) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    return _mm512_test_epi32_mask((__m512i)holds, (__m512i)holds) != 0;
#elif ENSDISTILL_LANES == 8 && defined(__x86_64__)
    return _mm256_testz_si256((__m256i)holds, (__m256i)holds) == 0;
#else
    int32_t found = 0;
    for (int i = 0; i < lanes; ++i) found |= holds[i];
    return found != 0;
#endif
  }

  // Over the lanes by halves, into every lane: an order that doesn't depend on anything, so the same bits every run.
  template <class Merge>
  static ALWAYS_INLINE vec reduce(vec v, const Merge& merge) {
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) v = merge(v, shuffle(v, v, (lane_index() + half) & (lanes - 1)));
    return v;
  }
  static ALWAYS_INLINE vec lane_max(vec v) {
    return reduce(v, [](vec a, vec b) ALWAYS_INLINE_LAMBDA { return a > b ? a : b; });
  }
  static ALWAYS_INLINE vec lane_sum(vec v) {
    return reduce(v, [](vec a, vec b) ALWAYS_INLINE_LAMBDA { return a + b; });
  }

  // Lanes alternately from the first, or the second, halves of a and b.
  static ALWAYS_INLINE vec zip_low(vec a, vec b) {
#if ENSDISTILL_LANES == 16
    return shuffle(a, b, ivec{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#elif ENSDISTILL_LANES == 8
    return shuffle(a, b, ivec{0, 8, 1, 9, 2, 10, 3, 11});
#else
    return shuffle(a, b, ivec{0, 4, 1, 5});
#endif
  }
  static ALWAYS_INLINE vec zip_high(vec a, vec b) {
#if ENSDISTILL_LANES == 16
    return shuffle(a, b, ivec{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#elif ENSDISTILL_LANES == 8
    return shuffle(a, b, ivec{4, 12, 5, 13, 6, 14, 7, 15});
#else
    return shuffle(a, b, ivec{2, 6, 3, 7});
#endif
  }
  static ALWAYS_INLINE vec shuffle(vec a, vec b, ivec from) {
#if defined(__clang__)
    vec v;
    for (int i = 0; i < lanes; ++i) v[i] = from[i] < lanes ? a[from[i]] : b[from[i] - lanes];
    return v;
#else
    return __builtin_shuffle(a, b, from);
#endif
  }
  // Each round turns the bits of (row, lane) by one place; after log2(lanes) rounds rows and lanes have changed places.
  static ALWAYS_INLINE void transpose(vec (&v)[lanes]) {
#pragma GCC unroll 4
    for (int round = lanes; round > 1; round /= 2) {
      vec t[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes / 2; ++i) t[2 * i] = zip_low(v[i], v[i + lanes / 2]), t[2 * i + 1] = zip_high(v[i], v[i + lanes / 2]);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) v[i] = t[i];
    }
  }

  // Four columns of 16 rows of floats, `stride` apart: by the halves of halves of a vector that memory gives for little, and shuffles within
  // these. A whole transposition costs as much for four columns as for 16.
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
  static constexpr bool turns_four = true;
  static ALWAYS_INLINE void turn_four(__m512 (&q)[4]) {
    const __m512 a = _mm512_unpacklo_ps(q[0], q[1]), b = _mm512_unpackhi_ps(q[0], q[1]);
    const __m512 c = _mm512_unpacklo_ps(q[2], q[3]), d = _mm512_unpackhi_ps(q[2], q[3]);
    const auto low = [](__m512 x, __m512 y)
                         ALWAYS_INLINE_LAMBDA { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))); };
    const auto high = [](__m512 x, __m512 y)
                          ALWAYS_INLINE_LAMBDA { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))); };
    q[0] = low(a, c), q[1] = high(a, c), q[2] = low(b, d), q[3] = high(b, d);
  }
  static ALWAYS_INLINE void load_four(const float* p, int64_t stride, vec (&v)[4]) {
    __m512 q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm512_castps128_ps512(_mm_loadu_ps(p + i * stride));
      q[i] = _mm512_mask_broadcast_f32x4(q[i], 0x00f0, _mm_loadu_ps(p + (i + 4) * stride));
      q[i] = _mm512_mask_broadcast_f32x4(q[i], 0x0f00, _mm_loadu_ps(p + (i + 8) * stride));
      q[i] = _mm512_mask_broadcast_f32x4(q[i], 0xf000, _mm_loadu_ps(p + (i + 12) * stride));
    }
    turn_four(q);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) v[i] = (vec)q[i];
  }
  static ALWAYS_INLINE void store_four(float* p, int64_t stride, const vec (&v)[4]) {
    __m512 q[4] = {(__m512)v[0], (__m512)v[1], (__m512)v[2], (__m512)v[3]};
    turn_four(q);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_ps(p + i * stride, _mm512_castps512_ps128(q[i]));
      _mm_storeu_ps(p + (i + 4) * stride, _mm512_extractf32x4_ps(q[i], 1));
      _mm_storeu_ps(p + (i + 8) * stride, _mm512_extractf32x4_ps(q[i], 2));
      _mm_storeu_ps(p + (i + 12) * stride, _mm512_extractf32x4_ps(q[i], 3));
    }
  }
#else
  static constexpr bool turns_four = false;
#endif

  // exp(x / T) for x / T <= 0 and a little above, with k = log2(e) / T as two floats; relative error below 1e-7 (checked against
  // fp64); 0 below -87.3, NaN stays NaN. 2^(x k) is 2^n, n whole, times 2^r, r in [-1/2, 1/2], a minimax polynomial that is 1 at 0.
  static ALWAYS_INLINE vec exp(vec x, TwoFloats k = kLog2E) {
    const float magic = 12582912.f, low = -126.f;  // 1.5 * 2^23: adding it leaves round(x k) in the low bits of the mantissa
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    // The instruction scales by 2^n and zeroes numbers that are too small, so nothing has to be clamped.
    const vec shifted = x * k.high + magic, n = shifted - magic;
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)shifted, (__m512)all(magic + low), _CMP_NLT_UQ);
    return (vec)_mm512_maskz_scalef_ps(normal, (__m512)power_of_two(x * k.low + fused_difference(x, k.high, n)), (__m512)n);
#else
    const vec scaled = x * k.high, clamped = scaled < all(low) ? all(low / k.high) : x;
    const vec shifted = clamped * k.high + magic;
    const vec y = power_of_two(clamped * k.low + fused_difference(clamped, k.high, shifted - magic));
    const vec result = (vec)((ivec)y + ((ivec)shifted << 23));
    return scaled < all(low) ? vec{} : (x == x ? result : x);
#endif
  }
  // x k - n, rounded once: x k and n are nearly equal. (By the lanes: GCC 12 defines __FMA__ too late where a pragma selects the target.)
  static ALWAYS_INLINE vec fused_difference(vec x, float k, vec n) {
#if (ENSDISTILL_LANES >= 8 && defined(__x86_64__)) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return x * k - n;
#else
    vec v;
    for (int i = 0; i < lanes; ++i) v[i] = float(double(x[i]) * k - n[i]);
    return v;
#endif
  }
  static ALWAYS_INLINE vec power_of_two(vec r) {
    vec y = all(1.559467701511e-4f);
    y = y * r + 1.340664384748e-3f;
    y = y * r + 9.617692976143e-3f;
    y = y * r + 5.550310551207e-2f;
    y = y * r + 2.402265278288e-1f;
    y = y * r + 6.931472149679e-1f;
    return y * r + 1.f;
  }

  // exp(x k) for every x and a k below 0, relative error below 1e-7 (1 + |x k|); NaN stays NaN, and is also the result at infinite x.
  // Above exp(86) the result is any number from there on, or infinite; numbers below float's normal range may be 0.
  static ALWAYS_INLINE vec exp_any(vec x, float k) {
    const float magic = 12582912.f;  // as in exp()
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    const vec shifted = x * k + magic, n = shifted - magic;
    return (vec)_mm512_scalef_ps((__m512)power_of_two(fused_difference(x, k, n)), (__m512)n);
#else
    const vec least = all(125.f / k), most = all(-125.f / k), bounded = least > x ? least : x;
    const vec shifted = bounded * k + magic, y = power_of_two(fused_difference(bounded, k, shifted - magic));
    const vec result = y * (vec)(((ivec)shifted << 23) + 0x3f800000);
    return x > most ? vec{} : result;
#endif
  }

  // Natural logarithm of positive normal numbers, relative error below 2e-7; -inf at 0, NaN stays NaN.
  static ALWAYS_INLINE vec log(vec x) {
#if ENSDISTILL_LANES == 16 && defined(__x86_64__)
    // x = 2^n m with m in [3/4, 3/2). The first four bits of m choose c near 1 / m, which is 1 on both sides of 1: log(m c) keeps its digits.
    const vec inverse = {1.f,        0.9142857f, 0.8648649f, 0.82051283f, 0.7804878f, 0.74418604f, 0.7111111f, 0.68085104f,
                         1.3061224f, 1.254902f,  1.2075472f, 1.1636363f,  1.122807f,  1.0847458f,  1.0491803f, 1.f};
    const vec minus_log = {0.f,          0.089612156f, 0.14518198f,  0.19782573f,  0.2478362f,   0.29546422f,  0.34092656f,   0.38441172f,
                           -0.26706275f, -0.22705749f, -0.18859118f, -0.15154986f, -0.11583182f, -0.08134564f, -0.048009165f, 0.f};
    const vec m = (vec)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    const vec floor_n = (vec)_mm512_getexp_ps((__m512)x), n = m < all(1) ? floor_n + 1 : floor_n;
    const ivec at = (ivec)m >> 19;
    const vec r = m * look_up(inverse, at) - 1.f;  // in [-1/32, 1/16]
    vec y = all(1.8846035736e-1f);
    y = y * r + -2.5006104216e-1f;
    y = y * r + 3.3334452815e-1f;
    y = y * r + -5.0000001390e-1f;
    y = y * r + 1.f;
    return n * 0.69314718056f + (y * r + look_up(minus_log, at));
#else
    return log_of<false>(x, x);
#endif
  }
  // log(1 + x) for x >= 0: near 0 all digits of x count.
  static ALWAYS_INLINE vec log1p(vec x) { return log_of<true>(1.f + x, x); }
  // Cephes logf. `above`, where it is given, is x - 1 before it was rounded.
  template <bool kAbove>
  static ALWAYS_INLINE vec log_of(vec x, vec above) {
    const ivec bits = (ivec)x;
    ivec e = ((bits >> 23) & 0xff) - 126;
    vec m = (vec)((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
    const ivec small = m < all(0.707106781186547524f);
    e = e + small;  // the comparison is -1 where true
    m = (small ? m + m : m) - 1.f;
    if constexpr (kAbove) m = e == ivec{} ? above : m;
    const vec z = m * m;
    vec y = all(7.0376836292e-2f);
    y = y * m + -1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m + -1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m + -1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m + -2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z;
    const vec n = __builtin_convertvector(e, vec);
    y = y + n * -2.12194440e-4f - z * 0.5f;
    const vec result = m + y + n * 0.693359375f;
    return x > vec{} ? result : (x == x ? all(-__builtin_inff()) : x);
  }
};

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
