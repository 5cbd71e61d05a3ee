// Launches of the kernels: a file for each pair of student's and targets' types, so that they compile side by side.
#pragma once
#include "../plan.h"
#include "../problem.cuh"

namespace ensdistill::cuda {

#define ENSDISTILL_PAIRS(f)                                                                                                    \
  f(Element::f32, Element::f32, f32_f32) f(Element::f32, Element::bf16, f32_bf16) f(Element::f32, Element::f16, f32_f16)       \
      f(Element::f32, Element::u8, f32_u8) f(Element::bf16, Element::f32, bf16_f32) f(Element::bf16, Element::bf16, bf16_bf16) \
          f(Element::bf16, Element::u8, bf16_u8) f(Element::f16, Element::f32, f16_f32) f(Element::f16, Element::f16, f16_f16) \
              f(Element::f16, Element::u8, f16_u8)

#define ENSDISTILL_DECLARE(student, target, name) void launch_##name(const Problem&, const Plan&, cudaStream_t);
ENSDISTILL_PAIRS(ENSDISTILL_DECLARE)
#undef ENSDISTILL_DECLARE
void launch_f32_sparse(const Problem&, const Plan&, cudaStream_t);
void launch_bf16_sparse(const Problem&, const Plan&, cudaStream_t);
void launch_f16_sparse(const Problem&, const Plan&, cudaStream_t);
void launch_f64(const Problem&, const Plan&, cudaStream_t);

inline bool have_kernels(Element student, Element target) {
#define ENSDISTILL_IS(a, b, name) \
  if (student == a && target == b) return true;
  ENSDISTILL_PAIRS(ENSDISTILL_IS)
#undef ENSDISTILL_IS
  return false;
}

inline void launch_rows_of(const Problem& problem, const Plan& plan, cudaStream_t stream) {
  if (plan.layout == Layout::doubles) return launch_f64(problem, plan, stream);
  if (problem.kind == Kind::topk) {
    if (problem.student.type == Element::f32) return launch_f32_sparse(problem, plan, stream);
    if (problem.student.type == Element::bf16) return launch_bf16_sparse(problem, plan, stream);
    return launch_f16_sparse(problem, plan, stream);
  }
#define ENSDISTILL_LAUNCH(a, b, name) \
  if (problem.student.type == a && problem.targets.type == b) return launch_##name(problem, plan, stream);
  ENSDISTILL_PAIRS(ENSDISTILL_LAUNCH)
#undef ENSDISTILL_LAUNCH
}

}  // namespace ensdistill::cuda
