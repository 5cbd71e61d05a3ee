// Memory that outlives a call.
#pragma once
#include <cstddef>

namespace ensdistill {

// One buffer for each thread, kept between calls and grown when a wider row comes; aligned to 64 bytes.
void* thread_scratch(size_t bytes);

// A gradient's memory, on huge pages where the system has them. Faulting fresh pages in costs as much as the arithmetic, and
// a training loop allocates the same size again and again, so the last buffer that was given back is kept for the next call.
void* take_gradient(size_t bytes);
void give_gradient_back(void* data);
// Frees the buffers that are kept; returns their bytes.
size_t release_memory();

}  // namespace ensdistill
