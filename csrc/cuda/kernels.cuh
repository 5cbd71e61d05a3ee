// The kernels: one text for every plan, instantiated for each pair of types in rows/.
#pragma once
#include "observed.cuh"
#include "panels.cuh"
#include "plan.h"
#include "runtime.cuh"
#include "sparse.cuh"

namespace ensdistill::cuda {

// Registers limit the threads that can be under way at once, and with them the loads.
template <class Row>
constexpr int threads_at_once() {
  return Row::kForward && !Row::Panel::kRereads ? kThreadsAtOnce : kFewerThreadsAtOnce;
}

template <class Row>
__global__ void __launch_bounds__(threads_at_once<Row>(), 1) distill_rows(const __grid_constant__ Problem p) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Panel = typename Row::Panel;
  typename Panel::Group group(p.lanes, memory, p.cluster);
  Panel panel(p, group, memory);
  Row row(p, panel);
  // All threads of a block turn equally often: they meet in reductions.
  const int64_t blocks = group.blocks;
  for (int64_t first = blockIdx.x / blocks * p.rows_per_block; first < p.rows; first += gridDim.x / blocks * p.rows_per_block)
    row.run(first + group.index);
  if (p.cluster) cluster_barrier();  // no block leaves while its memory may be read
}

template <class Row>
void launch_rows(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (plan.registers) {
    *plan.registers = registers_of(distill_rows<Row>);
    return;
  }
  const int64_t groups = std::min<int64_t>(plan.groups(problem.rows), 0x7fffffff / plan.blocks);
  launch_clusters(distill_rows<Row>, dim3(unsigned(groups * plan.blocks)), unsigned(plan.blocks), dim3(unsigned(plan.threads)),
                  size_t(plan.shared_bytes), stream, problem);
}

template <class Panel>
void launch_loss(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (problem.divergence == Divergence::forward_kl) launch_rows<DenseRow<Panel, ForwardKl>>(problem, plan, stream);
  else launch_rows<DenseRow<Panel, AnyDivergence>>(problem, plan, stream);
}

template <class Student, class Target>
void launch_dense(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (problem.statistics) return launch_rows<ObservedRow<Vectors<Student, Target, Holding::nothing>>>(problem, plan, stream);
  switch (plan.layout) {
    case Layout::staged: return launch_loss<Singles<Student, Target, true>>(problem, plan, stream);
    case Layout::strided: return launch_loss<Singles<Student, Target, false>>(problem, plan, stream);
    case Layout::reread: return launch_loss<Vectors<Student, Target, Holding::nothing>>(problem, plan, stream);
    default:
      if (plan.at_once) return launch_loss<Vectors<Student, Target, Holding::at_once>>(problem, plan, stream);
      return launch_loss<Vectors<Student, Target, Holding::in_turn>>(problem, plan, stream);
  }
}

template <class Student>
void launch_sparse(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (plan.layout == Layout::block) launch_rows<SparseRow<Vectors<Student, float, Holding::in_turn>>>(problem, plan, stream);
  else launch_rows<SparseRow<Vectors<Student, float, Holding::nothing>>>(problem, plan, stream);
}

}  // namespace ensdistill::cuda
