// Which members count, and how much.
#pragma once
#include "hardware.cuh"

namespace ensdistill::cuda {

// Numbers and normalised weights of the members with a weight above zero, by one thread, since their order is that of the
// sums; returns how many. False in `valid` where a weight is negative or not finite, or they sum to 0.
ENSDISTILL_DEVICE int use_members(const double* weights, int members, int* member, double* weight, bool* valid) {
  double total = 0;
  bool fine = true;
  int used = 0;
  for (int k = 0; k < members; ++k) {
    const double w = weights ? weights[k] : 1.0;
    fine = fine && w >= 0 && w <= 1e300;
    total += w;
    if (w > 0) member[used] = k, weight[used] = w, ++used;
  }
  *valid = fine && total > 0;
  if (!*valid) {  // something that can be read: the rows become NaN anyway
    member[0] = 0, weight[0] = 1;
    return 1;
  }
  for (int k = 0; k < used; ++k) weight[k] /= total;
  return used;
}

}  // namespace ensdistill::cuda
