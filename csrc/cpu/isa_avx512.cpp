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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")
#endif
#define ENSDISTILL_ISA avx512
#define ENSDISTILL_LANES 16
#include "isa.h"

namespace ensdistill {
const Kernels avx512_kernels{"avx512",
                             avx512::Simd::lanes,
                             &avx512::rows<avx512::Simd>,
                             &avx512::Row<avx512::Simd>::scratch_bytes,
                             &avx512::multilabel_rows<avx512::Simd>,
                             &avx512::MultilabelRow<avx512::Simd>::scratch_bytes};
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
