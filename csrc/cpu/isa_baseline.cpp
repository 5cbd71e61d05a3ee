// The instruction set that every machine of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "problem.h"

#define ENSDISTILL_ISA baseline
#define ENSDISTILL_LANES 4
// clang-format off: each needs the one before it
#include "simd.h"
#include "row_kernel.h"
#include "rows.h"
// clang-format on

namespace ensdistill {
const Kernels baseline_kernels{"baseline", &baseline::rows<baseline::Simd>};
}
