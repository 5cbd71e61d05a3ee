// The Python module of the CPU library. Importing it registers the ops; it binds only functions that are no tensor ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "../cuda/plan.h"
#include "../names.h"
#include "../rowmath.h"
#include "dispatch.h"
#include "memory.h"

namespace {

// The plan that the CUDA kernels would take: plain arithmetic, so it is available where there is no GPU.
pybind11::dict kernel_plan(int64_t rows, int64_t classes, int64_t members, int student_bytes, int target_bytes, bool geometric, bool doubles,
                           const std::string& divergence, bool unit_classes, bool flat, int64_t entries, int shared_limit, bool clusters) {
  using namespace pybind11::literals;
  ensdistill::Divergence which;
  if (!ensdistill::find_by_name(divergence, which)) throw std::invalid_argument("divergence: unknown value " + divergence);
  ensdistill::cuda::Shape shape{};
  shape.rows = rows, shape.classes = classes, shape.members = members, shape.student_bytes = student_bytes, shape.target_bytes = target_bytes;
  shape.geometric = geometric, shape.doubles = doubles, shape.sparse = entries > 0, shape.keeps_softmax = ensdistill::needs_log_of_little(which);
  shape.unit_classes = unit_classes, shape.flat = flat, shape.aligned = !doubles && classes * student_bytes % 16 == 0, shape.entries = entries,
  shape.shared_limit = shared_limit, shape.clusters = clusters;
  const auto plan = ensdistill::cuda::Planner(shape).choose();
  return pybind11::dict("layout"_a = ensdistill::cuda::name_of(plan.layout), "threads"_a = plan.threads, "cluster_blocks"_a = plan.blocks,
                        "threads_per_row"_a = plan.lanes * plan.blocks, "rows_per_block"_a = plan.rows_per_block, "vectors_per_thread"_a = plan.steps,
                        "shared_bytes"_a = plan.shared_bytes, "bytes"_a = plan.bytes);
}

template <class... Enums>
pybind11::dict names() {
  pybind11::dict all;
  (all.attr("__setitem__")(ensdistill::Names<Enums>::what, ensdistill::names_of<Enums>()), ...);
  return all;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  using namespace ensdistill;
  using namespace pybind11::literals;
  m.doc() = "CPU kernels of ensdistill; use ensdistill.loss.ops.";
  m.attr("compiled_with_torch") = ENSDISTILL_TORCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("compiled_instruction_sets", &ensdistill::compiled_instruction_sets);
  m.def("runnable_instruction_sets", &ensdistill::runnable_instruction_sets);
  m.def("instruction_set", [] { return std::string(ensdistill::active_kernels().name); });
  m.def("use_instruction_set", &ensdistill::use_instruction_set, "Run another of the runnable instruction sets (tests and benchmarks do).");
  m.def("kernel_plan", &kernel_plan, "rows"_a, "classes"_a, "members"_a, "student_bytes"_a, "target_bytes"_a, "geometric"_a, "doubles"_a,
        "divergence"_a, "unit_classes"_a, "flat"_a, "entries"_a, "shared_limit"_a, "clusters"_a);
  m.attr("names") = names<Element, Kind, Divergence, Combiner, TailMode, Reduction>();
  m.attr("loss_arguments") = ensdistill::argument_names();
  m.def("release_memory", &ensdistill::release_memory, "Free the gradient memory that is kept for the next call; returns its bytes.");
}
