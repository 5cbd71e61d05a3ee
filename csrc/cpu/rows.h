// Walks the rows of a problem: picks element types and the layout, and feeds row_kernel.h. Included after it.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// The sources of one row, for each element type of the targets.
template <class S, class T>
struct TargetRows {
  const Problem& problem;
  int64_t row;

  ALWAYS_INLINE auto operator()(int64_t k) const {
    const int64_t member = problem.members[k];
    const T* codes = static_cast<const T*>(problem.targets) + member * problem.target_member_stride + row * problem.target_row_stride;
    if constexpr (std::is_same_v<T, uint8_t>)
      return Codes<S>(codes, problem.classes, problem.scale[member * problem.scale_member_stride + row * problem.scale_row_stride],
                      problem.offset[member * problem.offset_member_stride + row * problem.offset_row_stride]);
    else return Along<S, T>{codes, problem.classes};
  }
};

template <class S, class T>
struct RowSink {
  T* row;
  int64_t classes;
  ALWAYS_INLINE void operator()(int64_t i, typename S::vec v) const {
    const int64_t first = i * S::lanes;
    first + S::lanes <= classes ? S::store(row + first, v) : S::store_part(row + first, v, classes - first);
  }
};

template <class S>
struct ScratchSink {
  typename S::real* columns;
  ALWAYS_INLINE void operator()(int64_t i, typename S::vec v) const { S::store(columns + i * S::lanes, v); }
  ALWAYS_INLINE typename S::vec at(int64_t i) const { return S::load(columns + i * S::lanes); }
};

template <class S>
struct Buffers {
  typename S::real* row[kScratchRows];
  typename S::vec* used[3];

  Buffers(void* scratch, int64_t classes) {
    auto* next = static_cast<typename S::real*>(scratch);
    for (auto& r : row) r = next, next += padded(classes);
    for (auto& u : used) u = reinterpret_cast<typename S::vec*>(next), next += max_blocks(classes) * S::lanes;
  }
  template <bool Across>
  typename Rows<S, Across>::Scratch scratch() const {
    return {row[0], row[1], row[2], row[3], used[0], used[1], used[2]};
  }
};

template <class S, class T>
void zero_row(T* row, int64_t classes) {
  if (row) std::memset(static_cast<void*>(row), 0, classes * sizeof(T));
}

template <class S, class Student, class Target>
void rows_along(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  const Buffers<S> buffers(memory, problem.classes);
  const auto* student = static_cast<const Student*>(problem.student);
  auto* gradient = static_cast<Student*>(problem.gradient);
  for (int64_t row = begin; row < end; ++row) {
    Student* out = gradient ? gradient + row * problem.classes : nullptr;
    if (problem.labels && problem.labels[row] == problem.ignore_index) {
      problem.row_loss[row] = 0;
      zero_row<S>(out, problem.classes);
      continue;
    }
    const auto loss = Rows<S, false>::run(problem, Along<S, Student>{student + row * problem.student_stride, problem.classes},
                                          TargetRows<S, Target>{problem, row}, RowSink<S, Student>{out, problem.classes},
                                          problem.labels ? problem.labels + row : nullptr, buffers.template scratch<false>());
    problem.row_loss[row] = Rows<S, false>::lane_get(loss, 0);
  }
}

// Copies `lanes` rows into columns: column c of row r lands at [c * lanes + r]. Rows past `count` repeat the last one.
template <class S, class SourceAt>
ALWAYS_INLINE void into_columns(const SourceAt& source_at, int64_t count, int64_t classes, typename S::real* row, typename S::real* columns) {
  for (int64_t r = 0; r < S::lanes; ++r) {
    const auto source = source_at(r < count ? r : count - 1);
    for (int64_t i = 0; i * S::lanes < classes; ++i) S::store(row + i * S::lanes, source.load(i, 0));
    for (int64_t c = 0; c < classes; ++c) columns[c * S::lanes + r] = row[c];
  }
}

// The members' rows as columns. A member's columns are overwritten by the next member's: run() is done with one before it
// asks for another, except that a single member is asked for again in the last sweep, when its columns still stand.
template <class S>
struct TargetColumns {
  void (*fill)(const Problem&, int64_t row, int64_t count, int64_t k, typename S::real* line, typename S::real* columns);
  const Problem& problem;
  int64_t row, count;
  typename S::real *line, *columns;
  mutable int64_t loaded = -1;

  ALWAYS_INLINE auto operator()(int64_t k) const {
    if (loaded != k) fill(problem, row, count, k, line, columns);
    loaded = k;
    return Along<S, typename S::real>{columns, problem.classes * S::lanes};
  }
};

template <class S, class Target>
void fill_target_columns(const Problem& problem, int64_t row, int64_t count, int64_t k, typename S::real* line, typename S::real* columns) {
  into_columns<S>([&](int64_t r) { return TargetRows<S, Target>{problem, row + r}(k); }, count, problem.classes, line, columns);
}

// Once the rows are columns their element types are gone, so this is compiled once, not for each pair of types.
template <class S>
__attribute__((noinline)) typename S::vec run_columns(const Problem& problem, const typename S::real* student, const TargetColumns<S>& target,
                                                      typename S::real* gradient, const int64_t* labels, const Buffers<S>& buffers) {
  return Rows<S, true>::run(problem, Along<S, typename S::real>{student, problem.classes * S::lanes}, target, ScratchSink<S>{gradient}, labels,
                            buffers.template scratch<true>());
}

template <class S, class Student, class Target>
void rows_across(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  const Buffers<S> buffers(memory, problem.classes);
  typename S::real *student_columns = buffers.row[4], *target_columns = buffers.row[5], *line = buffers.row[6], *gradient_columns = buffers.row[7];
  const auto* student = static_cast<const Student*>(problem.student);
  auto* gradient = static_cast<Student*>(problem.gradient);
  const int64_t classes = problem.classes;
  for (int64_t row = begin; row < end; row += S::lanes) {
    const int64_t count = end - row < S::lanes ? end - row : S::lanes;
    int64_t labels[S::lanes];
    bool counted[S::lanes];
    for (int64_t r = 0; r < S::lanes; ++r) {
      const int64_t label = problem.labels ? problem.labels[row + (r < count ? r : count - 1)] : 0;
      counted[r] = !problem.labels || label != problem.ignore_index;
      labels[r] = counted[r] ? label : 0;
    }
    into_columns<S>([&](int64_t r) { return Along<S, Student>{student + (row + r) * problem.student_stride, classes}; }, count, classes, line,
                    student_columns);
    const TargetColumns<S> target{&fill_target_columns<S, Target>, problem, row, count, line, target_columns};
    const auto loss = run_columns<S>(problem, student_columns, target, gradient_columns, problem.labels ? labels : nullptr, buffers);
    for (int64_t r = 0; r < count; ++r) {
      problem.row_loss[row + r] = counted[r] ? Rows<S, true>::lane_get(loss, r) : 0;
      if (!gradient) continue;
      Student* out = gradient + (row + r) * classes;
      if (!counted[r]) {
        zero_row<S>(out, classes);
        continue;
      }
      for (int64_t c = 0; c < classes; ++c) line[c] = gradient_columns[c * S::lanes + r];
      const RowSink<S, Student> sink{out, classes};
      for (int64_t i = 0; i * S::lanes < classes; ++i) sink(i, S::load(line + i * S::lanes));
    }
  }
}

template <class S, class Student, class Target>
void rows_of(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  if constexpr (S::lanes > 1)
    if (problem.classes <= kNarrowClasses) return rows_across<S, Student, Target>(problem, begin, end, memory);
  rows_along<S, Student, Target>(problem, begin, end, memory);
}

template <class S, class Student>
void rows_for_student(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  switch (problem.target_type) {
    case Element::f32: return rows_of<S, Student, float>(problem, begin, end, memory);
    case Element::bf16: return rows_of<S, Student, Bf16>(problem, begin, end, memory);
    case Element::f16: return rows_of<S, Student, F16>(problem, begin, end, memory);
    case Element::u8: return rows_of<S, Student, uint8_t>(problem, begin, end, memory);
    case Element::f64:
      if constexpr (S::lanes == 1) return rows_of<S, Student, double>(problem, begin, end, memory);
  }
}

template <class S>
void rows(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  switch (problem.student_type) {
    case Element::f32: return rows_for_student<S, float>(problem, begin, end, memory);
    case Element::bf16: return rows_for_student<S, Bf16>(problem, begin, end, memory);
    case Element::f16: return rows_for_student<S, F16>(problem, begin, end, memory);
    default:
      if constexpr (S::lanes == 1) return rows_for_student<S, double>(problem, begin, end, memory);
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
