// Stands in for CUDA's header: the words of the language, its built-in variables and functions, and the part of the runtime
// that the launchers use, for a device that is this process. Functions wait, report and draw lots in engine.cpp.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "shim/engine.h"
#include "shim/vectors.h"

#define __global__ __attribute__((visibility("default")))  // so that reports can name it
#define __device__
#define __host__
#define __forceinline__ inline  // not forced: unoptimised copies in every caller take four times as long to compile
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // see shared.h

// Of the thread that runs now.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

#include "shim/functions.h"
#include "shim/hardware.h"
#include "shim/runtime.h"
