// The Python module of the CPU library. Importing it registers the ops; it binds only functions that are no tensor ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "../cuda/plan.h"
#include "../names.h"
#include "../rowmath.h"
#include "dispatch.h"
#include "memory.h"
#include "prepared.h"

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
                        "shared_bytes"_a = plan.shared_bytes, "bytes"_a = plan.bytes, "members_at_once"_a = plan.at_once);
}

// A call's settings and shapes by name; its strides count elements.
ensdistill::PreparedLoss prepare_loss(const pybind11::dict& settings, const pybind11::dict& layout) {
  using namespace ensdistill;
  LossCall call{};
  const auto choice = [&](const char* name, auto& value) {
    const auto given = settings[name].cast<std::string>();
    if (!find_by_name(given, value)) throw std::invalid_argument(std::string(name) + ": unknown value " + given);
  };
#define ENSDISTILL_CHOICE(type, name) choice(#name, call.name);
#define ENSDISTILL_SETTING(type, name) call.name = settings[#name].cast<type>();
#include "../loss_arguments.def"
  const auto number = [&](const char* name) { return layout[name].cast<int64_t>(); };
  const auto element = [&](const char* name) {
    Element type{};
    if (!find_by_name(layout[name].cast<std::string>(), type)) throw std::invalid_argument(std::string(name) + ": unknown element");
    return type;
  };
  call.rows = call.inner = number("rows"), call.classes = number("classes"), call.entries = number("entries");
  call.student = {nullptr, element("student"), 0, number("student_stride"), 1};
  call.targets = {nullptr, element("targets"), 0, number("target_stride"), 1};
  call.target_member_stride = number("target_member_stride");
  call.scale_member_stride = number("scale_member_stride"), call.scale_row_stride = number("scale_stride");
  call.offset_member_stride = number("offset_member_stride"), call.offset_row_stride = number("offset_stride");
  call.tail_is_double = layout["tail_is_double"].cast<bool>();
  call.gradient_layout = {nullptr, call.student.type, 0, call.classes, 1};
  return PreparedLoss(call, number("members"));
}

bool run_prepared(const ensdistill::PreparedLoss& loss, uintptr_t student, uintptr_t targets, uintptr_t scale, uintptr_t offset, uintptr_t ids,
                  uintptr_t tail, uintptr_t weights, uintptr_t labels, uintptr_t class_weights, uintptr_t sample_weights, uintptr_t gradient,
                  uintptr_t out) {
  const auto at = [](uintptr_t address, auto* null) { return reinterpret_cast<decltype(null)>(address); };
  void* const any = nullptr;
  const float* const floats = nullptr;
  const double* const doubles = nullptr;
  const int64_t* const integers = nullptr;
  return loss.run({at(student, any), at(targets, any), at(scale, floats), at(offset, floats), at(ids, integers), at(tail, any), at(weights, doubles),
                   at(labels, integers), at(class_weights, doubles), at(sample_weights, doubles), at(gradient, any), at(out, any)});
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
  pybind11::class_<PreparedLoss>(m, "PreparedLoss", "A call of the loss whose settings, shapes, types and strides are checked; see prepared.py.")
      .def(pybind11::init(&prepare_loss), "settings"_a, "layout"_a)
      .def("run", &run_prepared, pybind11::call_guard<pybind11::gil_scoped_release>(),
           "Addresses in the order of the op's tensors, 0 for None, then of gradient and loss. False where the op has to refuse or explain.");
  m.attr("names") = names<Element, Kind, Divergence, Combiner, TailMode, Reduction>();
  m.attr("loss_arguments") = ensdistill::argument_names();
  m.def("release_memory", &ensdistill::release_memory, "Free the gradient memory that is kept for the next call; returns its bytes.");
}
