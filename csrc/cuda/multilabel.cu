// The multi-label kernels, free of torch, whose headers take longer to compile than they do. See multilabel_loss.cuh.
#include "multilabel.cuh"

#include <algorithm>

#include "multilabel_launch.h"
#include "runtime.cuh"

namespace ensdistill::cuda {

void launch_prepare_multilabel(Prepared* out, int* member, double* weight, const double* weights, int members, const MultilabelCall& call,
                               cudaStream_t stream) {
  const int64_t rows = call.marked() && call.reduction == Reduction::mean ? call.rows : 1;
  const int64_t blocks = std::clamp<int64_t>((rows + 7) / 8, 1, 1024);
  launch(prepare_multilabel, dim3(unsigned(blocks)), dim3(kMultilabelThreads), 0, stream, out, member, weight, weights, members, call);
}

namespace {

// Whether vectors of kStep classes begin at a multiple of their size, or of 16 bytes.
bool is_aligned(const Matrix& m) {
  if (!m.data) return true;
  const int64_t width = std::min<int64_t>(16, kStep * bytes_of(m.type)), size = bytes_of(m.type);
  return m.class_stride == 1 && reinterpret_cast<uintptr_t>(m.data) % uintptr_t(width) == 0 && m.inner_stride * size % width == 0 &&
         m.outer_stride * size % width == 0;
}

}  // namespace

int64_t multilabel_shared_bytes(const MultilabelProblem& p) {
  return kReductionBytes + (p.kind == Kind::topk && p.taught() ? (p.classes + 31) / 32 * 4 : 0);
}

void launch_multilabel(MultilabelProblem p, bool in_double, cudaStream_t stream) {
  Matrix gradient = p.gradient_layout;
  gradient.data = p.gradient;
  const bool sparse = p.kind == Kind::topk;
  const int64_t width = std::min<int64_t>(16, kStep * bytes_of(p.targets.type));
  p.vectors = !in_double && is_aligned(p.student) && is_aligned(gradient) && is_aligned(p.marks) && is_aligned(p.mask) &&
              (sparse || (is_aligned(p.targets) && p.target_member_stride * bytes_of(p.targets.type) % width == 0));
  // A thread for each step's classes; a thread for each row where neighbouring rows are neighbours in memory.
  p.lanes = 1;
  while (p.lanes < 32 && p.student.class_stride == 1 && p.lanes * (in_double ? 1 : kStep) < p.classes) p.lanes *= 2;
  if ((sparse && p.taught()) || (p.lanes == 32 && p.classes >= 32 * kMultilabelThreads)) p.lanes = kMultilabelThreads;
  const int64_t rows_of_block = kMultilabelThreads / p.lanes;
  const dim3 blocks(unsigned(std::min<int64_t>((p.rows + rows_of_block - 1) / rows_of_block, 0x7fffffff)));
  const auto run = [&](auto kernel) { launch(kernel, blocks, dim3(kMultilabelThreads), size_t(multilabel_shared_bytes(p)), stream, p); };
  in_double ? run(multilabel_rows<double>) : run(multilabel_rows<float>);
}

}  // namespace ensdistill::cuda
