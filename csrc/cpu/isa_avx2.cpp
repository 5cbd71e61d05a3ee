// Headers first: their definitions must not be compiled for this instruction set, or the linker could pick it up elsewhere.
#include <immintrin.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "problem.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define ENSDISTILL_ISA avx2
#define ENSDISTILL_LANES 8
#include "isa.h"

namespace ensdistill {
const Kernels avx2_kernels{"avx2",
                           avx2::Simd::lanes,
                           &avx2::rows<avx2::Simd>,
                           &avx2::Row<avx2::Simd>::scratch_bytes,
                           &avx2::multilabel_rows<avx2::Simd>,
                           &avx2::MultilabelRow<avx2::Simd>::scratch_bytes};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
