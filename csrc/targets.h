// Where logits come from. Every source answers one question, load(i, fill): the i-th vector of a row, decoded, with lanes
// past the row's end set to `fill`. A new kind of target is one more struct here. Included after a Simd type is defined.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// Dense elements along a row.
template <class S, class T>
struct Along {
  const T* row;
  int64_t classes;

  ALWAYS_INLINE typename S::vec load(int64_t i, float fill) const {
    const int64_t first = i * S::lanes;
    return first + S::lanes <= classes ? S::load(row + first) : S::load_part(row + first, classes - first, fill);
  }
};

// uint8 codes along a row with the row's affine map.
template <class S>
struct Codes {
  const uint8_t* row;
  int64_t classes;
  typename S::real step, offset, zero_value;

  Codes(const uint8_t* row, int64_t classes, float scale, float offset)
      : row(row), classes(classes), step(scale < 0 ? -scale : scale), offset(offset), zero_value(scale < 0 ? -__builtin_inff() : offset) {}

  ALWAYS_INLINE typename S::vec load(int64_t i, float fill) const {
    const int64_t first = i * S::lanes, count = classes - first;
    if (count >= S::lanes) return decoded(S::load(row + first));
    const auto v = decoded(S::load_part(row + first, count, 0));
    return S::lane_index() < typename S::ivec{} + int32_t(count) ? v : S::all(fill);
  }
  ALWAYS_INLINE typename S::vec decoded(typename S::vec code) const { return decode(code, S::all(step), S::all(offset), S::all(zero_value)); }
};

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
