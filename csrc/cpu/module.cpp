// The Python module of the CPU library. Importing it registers the ops; what it binds itself is what is no tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"
#include "memory.h"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of ensdistill; use ensdistill.ops.";
  m.attr("compiled_with_torch") = ENSDISTILL_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("compiled_instruction_sets", &ensdistill::compiled_instruction_sets);
  m.def("runnable_instruction_sets", &ensdistill::runnable_instruction_sets);
  m.def("instruction_set", [] { return std::string(ensdistill::active_kernels().name); });
  m.def("use_instruction_set", &ensdistill::use_instruction_set, "Run another of the runnable instruction sets (tests and benchmarks do).");
  m.def("release_memory", &ensdistill::release_memory, "Free the gradient memory that is kept for the next call; returns its bytes.");
}
