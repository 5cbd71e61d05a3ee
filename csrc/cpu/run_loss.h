// One call of the loss on the CPU, from plain pointers: precision, instruction set, threads, the reduction.
#pragma once
#include <cstdint>
#include <vector>

#include "../problem.h"

namespace ensdistill {

// Those with weight, and their weights, which sum to one.
struct Members {
  std::vector<int64_t> used;
  std::vector<double> weights;
};

// Values are checked already. Writes the loss [] or [N] and, where wanted, the statistics [N, 4], in double or in float; the gradient's place
// is in `call`.
void run_loss(const LossCall& call, const Members& members, bool in_double, void* loss, void* statistics);

}  // namespace ensdistill
