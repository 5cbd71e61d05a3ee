// The Python module of the CUDA library. Importing it registers the ops; it binds only functions that are no tensor ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../names.h"
#include "plan.h"

namespace ensdistill::cuda {
int registers_of_plan(Layout, Element student, Element target, Divergence, bool sparse);
}

namespace {

// As TORCH_CUDA_ARCH_LIST separates them: "8.0;9.0;10.0+PTX", or with spaces.
std::vector<std::string> architectures() {
  const std::string list = ENSDISTILL_ARCHITECTURES;
  std::vector<std::string> names;
  for (size_t begin = 0; (begin = list.find_first_not_of("; ", begin)) != std::string::npos;) {
    const size_t end = std::min(list.find_first_of("; ", begin), list.size());
    names.push_back(list.substr(begin, end - begin));
    begin = end;
  }
  return names;
}

int registers(const std::string& layout, const std::string& student, const std::string& targets, const std::string& divergence, bool sparse) {
  using namespace ensdistill;
  Element student_type, target_type;
  Divergence which;
  if (!find_by_name(student, student_type) || !find_by_name(targets, target_type) || !find_by_name(divergence, which))
    throw std::invalid_argument("student, targets, divergence: unknown name among " + student + ", " + targets + ", " + divergence);
  for (int i = 0; i <= int(cuda::Layout::doubles); ++i)
    if (layout == cuda::name_of(cuda::Layout(i))) return cuda::registers_of_plan(cuda::Layout(i), student_type, target_type, which, sparse);
  throw std::invalid_argument("layout: no plan is called " + layout);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of ensdistill; use ensdistill.loss.ops.";
  m.attr("architectures") = architectures();
  using namespace pybind11::literals;
  m.def("registers", &registers, "layout"_a, "student"_a, "targets"_a, "divergence"_a, "sparse"_a);
}
