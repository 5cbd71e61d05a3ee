// Which of the compiled instruction sets this machine runs.
#pragma once
#include <string>
#include <vector>

#include "problem.h"

namespace ensdistill {

std::vector<std::string> compiled_instruction_sets();
std::vector<std::string> runnable_instruction_sets();  // widest last
const Kernels& active_kernels();
// Throws std::invalid_argument for a name that isn't runnable here.
void use_instruction_set(const std::string& name);

}  // namespace ensdistill
