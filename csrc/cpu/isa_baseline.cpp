// The instruction set that every machine of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "problem.h"

#define ENSDISTILL_ISA baseline
#define ENSDISTILL_LANES 4
#include "isa.h"

namespace ensdistill {
const Kernels baseline_kernels{"baseline",
                               baseline::Simd::lanes,
                               &baseline::rows<baseline::Simd>,
                               &baseline::Row<baseline::Simd>::scratch_bytes,
                               &baseline::multilabel_rows<baseline::Simd>,
                               &baseline::MultilabelRow<baseline::Simd>::scratch_bytes};
}
