// Feeds rows to row.h. Included after it and its parts.

namespace ensdistill {
namespace ENSDISTILL_ISA {

// Units of work: rows, or groups of `lanes` neighbours in the inner dimension.
template <class S>
void rows(const Problem& problem, int64_t begin, int64_t end, void* memory, const Team& team) {
  Row<S> row(problem, memory, team);
  if (!runs_across(problem)) {
    for (int64_t n = begin; n < end; ++n) row.run(n, 1);
    return;
  }
  const int64_t groups = (problem.inner + S::lanes - 1) / S::lanes;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t within = g % groups * S::lanes, left = problem.inner - within;
    row.run(g / groups * problem.inner + within, left < S::lanes ? left : S::lanes);
  }
}

}  // namespace ENSDISTILL_ISA
}  // namespace ensdistill
