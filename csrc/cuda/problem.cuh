// A call of the loss as the kernels see it.
#pragma once
#include "../problem.h"
#include "group.cuh"

namespace ensdistill::cuda {

// Made on the device, so that the host does not wait for values.
struct Prepared {
  unsigned long long labelled;  // rows whose label is known; 0 where it is not needed
  double class_weight_sum;
  int members_used;
  int valid;  // 0: a weight is negative or not finite, or they sum to 0
};

struct Problem : LossCall {
  const Prepared* prepared;
  const int* member;     // [members_used] those with a weight above zero
  const double* weight;  // [members_used] normalised to sum to one
  bool geometric;        // average logits (equal to averaging log-probabilities, once normalised), not probabilities
  double factor, share;  // row_factor() and hard_share(), once for all rows
  bool exact_logs;       // needs_log_of_little(divergence)
  bool doubles;          // the type of the two below
  void* row_loss;        // [N]
  void* statistics;      // [N, 4], or null

  // The plan's part.
  int lanes, rows_per_block, steps, buffers;  // steps: vectors of a row that one thread walks, at most; buffers: of targets on chip
  bool cluster;
  int table_size;  // of named classes
  // Offsets into shared memory; the first is -1 where it is not needed.
  int64_t member_softmax_at, members_at, meeting_at, shelves_at, index_at;
};

template <class R>
struct Add {
  ENSDISTILL_DEVICE R operator()(R a, R b) const { return a + b; }
};

}  // namespace ensdistill::cuda
