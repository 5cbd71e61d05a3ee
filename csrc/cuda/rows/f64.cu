// For float64 tensors, for temperatures at which float32 loses digits that matter, and for pairs of types too rare to have kernels.
#include "../kernels.cuh"

namespace ensdistill::cuda {
void launch_f64(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  using Panel = Singles<Any, Any, false>;
  if (problem.kind == Kind::topk) launch_rows<SparseRow<Panel>>(problem, plan, stream);
  else if (problem.statistics) launch_rows<ObservedRow<Panel>>(problem, plan, stream);
  else launch_rows<DenseRow<Panel, AnyDivergence>>(problem, plan, stream);
}
}  // namespace ensdistill::cuda
