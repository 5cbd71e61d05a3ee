// Feeds rows to row.h. Included after it and its parts.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// Asks for neighbouring rows of a matrix before they are needed. A group of narrow rows is so short, and is read by so many
// short loads, that the hardware's own looking ahead comes too late. (Not inlined, GCC takes it for a call without effect.)
ALWAYS_INLINE void prefetch_rows(const Matrix& matrix, int64_t first, int64_t rows, int64_t classes) {
  if (matrix.class_stride != 1) return;
  for (int64_t row = first; row < first + rows; ++row) {
    const char* at = static_cast<const char*>(element_at(matrix, row * matrix.inner_stride));
    for (int64_t i = 0; i < classes * bytes_of(matrix.type); i += 64) __builtin_prefetch(at + i);
  }
}

// Units of work: rows, or groups of `lanes` neighbours in the inner dimension.
template <class S>
void rows(const Problem& problem, int64_t begin, int64_t end, void* memory, const Team& team) {
  Row<S> row(problem, memory, team);
  if (!runs_across(problem)) {
    for (int64_t n = begin; n < end; ++n) row.run(n, 1);
    return;
  }
  const int64_t groups = (problem.inner + S::lanes - 1) / S::lanes, ahead = 1 + kAhead / problem.classes;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t within = g % groups * S::lanes, left = problem.inner - within;
    if (const int64_t next = (g + ahead) * S::lanes; problem.inner == problem.rows && next + S::lanes <= problem.rows) {
      prefetch_rows(problem.student, next, S::lanes, problem.classes);
      for (int64_t k = 0; k < problem.members_used && problem.kind != Kind::topk; ++k) {
        Matrix member = problem.targets;
        member.data = element_at(member, problem.members[k] * problem.target_member_stride);
        prefetch_rows(member, next, S::lanes, problem.classes);
      }
      if (problem.gradient) prefetch_rows(problem.gradient_layout, next, S::lanes, problem.classes);
    }
    row.run(g / groups * problem.inner + within, left < S::lanes ? left : S::lanes);
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
