// Where the CPU's numbers come from, and where its gradients go. The mathematics sees floats in blocks of vectors, never an
// element type or a layout: a Source decodes a block of one row (or of `lanes` rows side by side), a Sink stores one. A new
// element type or layout is one more function here; a new kind of target is one more way to fill a Source. Included after a Simd type.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// The three layouts of a block. Along: vector i holds classes i * lanes ... of one row. Across: vector i holds class i of
// `lanes` rows, which are read by transposition where classes are contiguous (Turned), directly where rows are (Direct).
enum class Layout { along, turned, direct };

// How many vectors ahead of its use memory is prefetched: about a page, where the hardware's own looking ahead begins anew.
constexpr int64_t kAhead = 64;

struct Ahead {
  const char* at;
  int64_t step;
  ALWAYS_INLINE void operator()(int64_t i) const { __builtin_prefetch(at + i * step); }
};

// How a row, or `lanes` rows side by side, lie in memory.
struct Place {
  int64_t classes, row_stride, class_stride;
  int64_t ahead;  // elements to the rows that are prefetched while these are in use, Across
  int64_t rows;   // valid lanes of an Across block
};

template <class S>
struct Source : Place {
  using vec = typename S::vec;
  const void* data;  // the first row
  Element type;
  vec step, offset, zero_value;  // of codes, for each lane

  // Vectors [first, last) as floats into `out`, lanes past the end of a row set to -inf; returns the largest of each lane.
  vec (*decode)(const Source&, int64_t first, int64_t last, float* out);

  // Along, the block after this one: prefetched during the arithmetic.
  ALWAYS_INLINE Ahead after(int64_t first) const {
    const int64_t step = S::lanes * bytes_of(type);
    return {static_cast<const char*>(data) + (first + kAhead) * step, step};
  }

  // One logit (not a code).
  float one(int64_t c, int64_t lane) const {
    const int64_t at = lane * row_stride + c * class_stride;
    switch (type) {
      case Element::bf16: return S::load_part(static_cast<const Bf16*>(data) + at, 1, 0)[0];
      case Element::f16: return S::load_part(static_cast<const F16*>(data) + at, 1, 0)[0];
      default: return static_cast<const float*>(data)[at];
    }
  }
};

template <class S, class T>
ALWAYS_INLINE typename S::vec decoded(const Source<S>& source, typename S::vec v) {
  if constexpr (sizeof(T) == 1) return decode(v, source.step, source.offset, source.zero_value);
  else return v;
}

template <class S, class T>
typename S::vec decode_along(const Source<S>& source, int64_t first, int64_t last, float* out) {
  const T* row = static_cast<const T*>(source.data);
  typename S::vec max = S::all(-__builtin_inff());
  const int64_t whole = last * S::lanes <= source.classes ? last : last - 1;
  for (int64_t i = first; i < whole; ++i) {
    const auto v = decoded<S, T>(source, S::load(row + i * S::lanes));
    S::store(out + (i - first) * S::lanes, v);
    max = S::max(max, v);
  }
  if (whole < last) {
    const int64_t count = source.classes - whole * S::lanes;
    auto v = decoded<S, T>(source, S::load_part(row + whole * S::lanes, count, 0));
    v = S::lane_index() < typename S::ivec{} + int32_t(count) ? v : S::all(-__builtin_inff());
    S::store(out + (whole - first) * S::lanes, v);
    max = S::max(max, v);
  }
  return max;
}

// Rows that are narrow and follow one another: all of them at once, as floats with the rows' own stride.
template <class S, class T>
constexpr int64_t kFlatClasses = S::turns_four ? 32 : 0;

template <class S, class T>
ALWAYS_INLINE bool lies_flat(const Place& place, int64_t first, int64_t last) {
  return S::turns_four && place.rows == S::lanes && first == 0 && last == place.classes && place.row_stride == place.classes && last >= 4 &&
         last <= kFlatClasses<S, T>;
}

template <class S, class T>
ALWAYS_INLINE typename S::vec decode_flat(const Source<S>& source, float* out) {
  const T* rows = static_cast<const T*>(source.data);
  const int64_t classes = source.classes;
  typename S::vec max = S::all(-__builtin_inff());
  for (int64_t at = 0; at < classes * S::lanes * int64_t(sizeof(T)); at += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(rows) + source.ahead * int64_t(sizeof(T)) + at);
  alignas(64) float buffer[kFlatClasses<S, T> * S::lanes];
  const float* floats = buffer;
  if constexpr (sizeof(T) == 4) floats = rows;
  else
    for (int64_t i = 0; i < classes; ++i) S::store(buffer + i * S::lanes, S::load(rows + i * S::lanes));
  for (int64_t c = 0; c < classes; c += 4) {
    const int64_t from = c + 4 <= classes ? c : classes - 4;
    typename S::vec v[4];
    S::load_four(floats + from, classes, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto x = decoded<S, T>(source, v[i]);
      S::store(out + (from + i) * S::lanes, x);
      max = S::max(max, x);
    }
  }
  return max;
}

template <class S, class T>
typename S::vec decode_turned(const Source<S>& source, int64_t first, int64_t last, float* out) {
  constexpr int lanes = S::lanes;
  if constexpr (S::turns_four)
    if (lies_flat<S, T>(source, first, last)) return decode_flat<S, T>(source, out);
  const T* row[lanes];
  for (int r = 0; r < lanes; ++r) row[r] = static_cast<const T*>(source.data) + (r < source.rows ? r : source.rows - 1) * source.row_stride;
  typename S::vec max = S::all(-__builtin_inff());
  for (int64_t c = first; c < last; c += lanes) {
    const int64_t count = last - c < lanes ? last - c : lanes;
    typename S::vec v[lanes];
    for (int r = 0; r < lanes; ++r) __builtin_prefetch(row[r] + c + source.ahead);
    if (count == lanes)
      for (int r = 0; r < lanes; ++r) v[r] = S::load(row[r] + c);
    else
      for (int r = 0; r < lanes; ++r) v[r] = S::load_part(row[r] + c, count, 0);
    S::transpose(v);
    float* to = out + (c - first) * lanes;
    for (int i = 0; i < count; ++i) {
      const auto x = decoded<S, T>(source, v[i]);
      S::store(to + i * lanes, x);
      max = S::max(max, x);
    }
  }
  return max;
}

template <class S, class T>
typename S::vec decode_direct(const Source<S>& source, int64_t first, int64_t last, float* out) {
  const T* column = static_cast<const T*>(source.data) + first * source.class_stride;
  typename S::vec max = S::all(-__builtin_inff());
  for (int64_t i = first; i < last; ++i, column += source.class_stride, out += S::lanes) {
    __builtin_prefetch(column + source.ahead);
    const auto v = decoded<S, T>(source, source.rows == S::lanes ? S::load(column) : S::load_part(column, source.rows, 0));
    S::store(out, v);
    max = S::max(max, v);
  }
  return max;
}

template <class S>
struct Sink : Place {
  void* data;
  void (*store)(const Sink&, int64_t first, int64_t last, const float* g);
};

template <class S, class T>
void store_along(const Sink<S>& sink, int64_t first, int64_t last, const float* g) {
  T* row = static_cast<T*>(sink.data);
  const int64_t whole = last * S::lanes <= sink.classes ? last : last - 1;
  for (int64_t i = first; i < whole; ++i) S::store(row + i * S::lanes, S::load(g + (i - first) * S::lanes));
  if (whole < last) S::store_part(row + whole * S::lanes, S::load(g + (whole - first) * S::lanes), sink.classes - whole * S::lanes);
}

template <class S, class T>
ALWAYS_INLINE void store_flat(const Sink<S>& sink, const float* g) {
  T* rows = static_cast<T*>(sink.data);
  const int64_t classes = sink.classes;
  for (int64_t at = 0; at < classes * S::lanes * int64_t(sizeof(T)); at += 64)
    __builtin_prefetch(reinterpret_cast<char*>(rows) + sink.ahead * int64_t(sizeof(T)) + at, 1);
  alignas(64) float buffer[kFlatClasses<S, T> * S::lanes];
  float* floats = buffer;
  if constexpr (sizeof(T) == 4) floats = rows;
  for (int64_t c = 0; c < classes; c += 4) {
    const int64_t from = c + 4 <= classes ? c : classes - 4;
    const typename S::vec v[4] = {S::load(g + from * S::lanes), S::load(g + (from + 1) * S::lanes), S::load(g + (from + 2) * S::lanes),
                                  S::load(g + (from + 3) * S::lanes)};
    S::store_four(floats + from, classes, v);
  }
  if constexpr (sizeof(T) != 4)
    for (int64_t i = 0; i < classes; ++i) S::store(rows + i * S::lanes, S::load(buffer + i * S::lanes));
}

template <class S, class T>
void store_turned(const Sink<S>& sink, int64_t first, int64_t last, const float* g) {
  constexpr int lanes = S::lanes;
  if constexpr (S::turns_four)
    if (lies_flat<S, T>(sink, first, last)) return store_flat<S, T>(sink, g);
  T* row = static_cast<T*>(sink.data);
  for (int64_t c = first; c < last; c += lanes) {
    const int64_t count = last - c < lanes ? last - c : lanes;
    typename S::vec v[lanes];
    for (int i = 0; i < lanes; ++i) v[i] = S::load(g + (c - first + (i < count ? i : 0)) * lanes);
    for (int r = 0; r < lanes; ++r) __builtin_prefetch(row + r * sink.row_stride + c + sink.ahead, 1);
    S::transpose(v);
    if (count == lanes && sink.rows == lanes)
      for (int r = 0; r < lanes; ++r) S::store(row + r * sink.row_stride + c, v[r]);
    else
      for (int r = 0; r < sink.rows; ++r) S::store_part(row + r * sink.row_stride + c, v[r], count);
  }
}

template <class S, class T>
void store_direct(const Sink<S>& sink, int64_t first, int64_t last, const float* g) {
  T* column = static_cast<T*>(sink.data) + first * sink.class_stride;
  for (int64_t i = first; i < last; ++i, column += sink.class_stride, g += S::lanes) {
    __builtin_prefetch(column + sink.ahead, 1);
    if (sink.rows == S::lanes) S::store(column, S::load(g));
    else S::store_part(column, S::load(g), sink.rows);
  }
}

// --- the choice of functions, once for each row or group of rows

template <class S, class T>
auto decoder_of(Layout layout) {
  return layout == Layout::along ? &decode_along<S, T> : layout == Layout::turned ? &decode_turned<S, T> : &decode_direct<S, T>;
}
template <class S, class T>
auto store_of(Layout layout) {
  return layout == Layout::along ? &store_along<S, T> : layout == Layout::turned ? &store_turned<S, T> : &store_direct<S, T>;
}

// Across, memory is prefetched by whole groups of rows.
template <class S>
Place place_of(const Matrix& matrix, int64_t classes, int64_t rows) {
  return {classes, matrix.inner_stride, matrix.class_stride, (1 + kAhead / classes) * S::lanes * matrix.inner_stride, rows};
}

// `first`: of the rows, in elements.
template <class S>
Source<S> source_of(const Matrix& matrix, int64_t first, int64_t classes, int64_t rows, Layout layout) {
  Source<S> source{};
  static_cast<Place&>(source) = place_of<S>(matrix, classes, rows);
  source.data = static_cast<const char*>(matrix.data) + first * bytes_of(matrix.type);
  source.type = matrix.type;
  switch (matrix.type) {
    case Element::bf16: source.decode = decoder_of<S, Bf16>(layout); break;
    case Element::f16: source.decode = decoder_of<S, F16>(layout); break;
    case Element::u8: source.decode = decoder_of<S, uint8_t>(layout); break;
    default: source.decode = decoder_of<S, float>(layout);
  }
  return source;
}

// The maps of codes of rows row .. row + count - 1, one for each lane; lanes past the end have the last row's. Along a row, that row's
// in every lane.
template <class S>
void read_maps(const LossCall& call, int64_t member, int64_t row, int64_t count, bool across, Source<S>& source) {
  const float* scale = call.scale + member * call.scale_member_stride + row * call.scale_row_stride;
  const float* offset = call.offset + member * call.offset_member_stride + row * call.offset_row_stride;
  if (!across) {
    const AffineCodes<float> map(*scale, *offset);
    source.step = S::all(map.step), source.offset = S::all(map.offset), source.zero_value = S::all(map.zero_value);
    return;
  }
  typename S::vec scales, offsets;
  if (count == S::lanes && call.scale_row_stride == 1 && call.offset_row_stride == 1) {
    scales = S::load(scale), offsets = S::load(offset);
  } else {
    alignas(64) float s[S::lanes], o[S::lanes];
    for (int64_t lane = 0; lane < S::lanes; ++lane) {
      const int64_t n = lane < count ? lane : count - 1;
      s[lane] = scale[n * call.scale_row_stride], o[lane] = offset[n * call.offset_row_stride];
    }
    scales = S::load(s), offsets = S::load(o);
  }
  source.step = S::abs(scales), source.offset = offsets;
  source.zero_value = scales < typename S::vec{} ? S::all(-__builtin_inff()) : offsets + 0 * scales;  // as in AffineCodes
}

// `data`: the matrix whose layout is `matrix`.
template <class S>
Sink<S> sink_of(void* data, const Matrix& matrix, int64_t first, int64_t classes, int64_t rows, Layout layout) {
  Sink<S> sink{};
  static_cast<Place&>(sink) = place_of<S>(matrix, classes, rows);
  sink.data = static_cast<char*>(data) + first * bytes_of(matrix.type);
  switch (matrix.type) {
    case Element::bf16: sink.store = store_of<S, Bf16>(layout); break;
    case Element::f16: sink.store = store_of<S, F16>(layout); break;
    default: sink.store = store_of<S, float>(layout);
  }
  return sink;
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
