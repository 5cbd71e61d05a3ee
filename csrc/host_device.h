// A function for host and device alike.
#pragma once

#if defined(__CUDACC__)
#define ENSDISTILL_HD __host__ __device__ __forceinline__
#else
#define ENSDISTILL_HD inline __attribute__((always_inline))
#endif
