// The instruction set that every machine of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "problem.h"

#define ENSDISTILL_ISA baseline
#define ENSDISTILL_LANES 4
#include "row_kernel.h"
#include "rows.h"
#include "simd.h"

namespace ensdistill {
const Kernels baseline_kernels{"baseline", &baseline::rows<baseline::Simd>};
}
