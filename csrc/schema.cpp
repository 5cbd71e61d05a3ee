// The table of contents of the native code: every op's signature stands here and nowhere else.
// Registered through torch's stable ABI, so one binary serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ensdistill, m) {
  // Loss and gradient of distillation in one pass. N rows, C classes, K members; see ensdistill/functional.py.
  //   student   [N, C]                       float64 | float32 | bfloat16 | float16, any row stride
  //   targets   [K, N, C]                    the same, or uint8 codes with scale and offset [K, N] float32
  //   weights   [K] float64, non-negative    None: uniform
  //   labels    [N] int64                    None: no hard labels; rows equal to ignore_index don't count
  //   combiner  "prob" | "logit" | "log_prob"     reduction  "mean" | "sum" | "none"
  // Returns (loss, gradient): loss [] or [N], float64 where an input is, else float32; gradient [N, C] of the reduced
  // loss (of each row's, for "none") with respect to student, in its dtype; [0, C] when not asked for.
  m.def(
      "distill_loss(Tensor student, Tensor targets, Tensor? scale, Tensor? offset, Tensor? weights, Tensor? labels, "
      "float temperature, float alpha, str combiner, int ignore_index, float label_smoothing, str reduction, "
      "bool with_gradient) -> (Tensor, Tensor)");
}
