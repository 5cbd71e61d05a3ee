// A call of the multi-label loss as the kernels see it, and their launches (multilabel.cu).
#pragma once
#include <cuda_runtime.h>

#include "../multilabel.h"
#include "problem.cuh"

namespace ensdistill::cuda {

constexpr int kMultilabelThreads = 256;
// Classes that a thread has at a time.
constexpr int kStep = 8;
template <class Real>
constexpr int kStepOf = sizeof(Real) == 4 ? kStep : 1;

struct MultilabelProblem : MultilabelCall {
  const Prepared* prepared;
  const int* member;     // [members_used] those with a weight above zero
  const double* weight;  // [members_used] normalised to sum to one
  bool geometric;        // average logits, not probabilities
  bool doubles;          // the type of row_loss
  void* row_loss;        // [N]

  int lanes;     // threads of a row: up to 32, or the block
  bool vectors;  // a thread's classes are neighbours, and lie aligned in all matrices; else neighbouring threads have neighbouring classes
};

void launch_prepare_multilabel(Prepared* out, int* member, double* weight, const double* weights, int members, const MultilabelCall& call,
                               cudaStream_t stream);
void launch_multilabel(MultilabelProblem problem, bool in_double, cudaStream_t stream);
int64_t multilabel_shared_bytes(const MultilabelProblem& problem);

}  // namespace ensdistill::cuda
