// The table of contents of the native code: every op's signature stands here and nowhere else.
// Registered through torch's stable ABI, so one binary serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ensdistill, m) {
  // Loss and gradient of distillation in one pass. N rows, C classes, K members; see ensdistill/functional.py.
  //   student   [N, C] or [O, I, C] (N = O * I)   float64 | float32 | bfloat16 | float16; over the classes, or over I, the stride is 1
  //   targets   [K, N, C] or [K, O, I, C]         the same, or uint8 codes with scale and offset [K, N] float32
  //             [N, k] for kind "topk"            float32 | float64 log-probabilities of ids [N, k] int64; tail [N], log-mass outside
  //   weights   [K] float64, non-negative         None: uniform
  //   labels    [N] int64                         None: no hard labels; rows equal to ignore_index have no cross entropy
  //   class_weights [C], sample_weights [N]       float64
  //   kind "logits" | "log_probs" | "probs" | "topk"      divergence: see divergences.def
  //   combiner "prob" | "logit" | "log_prob"              tail_mode "tail" | "renormalize" | "zero"
  //   reduction "mean" over all rows, of the cross entropy over the labelled ones | "sum" over divisor | "none"
  // Returns (loss, gradient, statistics): loss [] or [N], float64 where an input is, else float32; gradient, shaped and laid
  // out as student and in its dtype, of the reduced loss (of each row's, for "none"), [0, ...] when not wanted;
  // statistics [N, 4] in the loss's dtype: entropy of q, entropy of p, agreement, disagreement; [0, 4] when not wanted.
  m.def(
      "distill_loss(Tensor student, Tensor targets, Tensor? scale, Tensor? offset, Tensor? ids, Tensor? tail, Tensor? weights, "
      "Tensor? labels, Tensor? class_weights, Tensor? sample_weights, str kind, str divergence, float beta, float temperature, "
      "float alpha, str combiner, str tail_mode, int ignore_index, float label_smoothing, float z_loss, str reduction, "
      "float divisor, bool with_gradient, bool with_statistics) -> (Tensor, Tensor, Tensor)");

  // The same over C sigmoids: the sum over classes of KL(p || q) of Bernoulli distributions, mixed with the binary cross entropy.
  //   labels        [N, C] uint8 or floating point    from 0 to 1; -1 (in uint8 255) where unknown: no cross entropy
  //   mask          [N, C] uint8                      0 leaves a class of a row out
  //   class_weights [C] float64                       of a class's whole term
  //   pos_weight    [C] float64                       of the cross entropy's positive part
  //   kind "topk"   log-probabilities of the ids; tail is the log of the sum of all others, which share it equally. tail_mode "tail" | "zero"
  //   reduction "mean": of the cross entropy over rows with a known label that is not masked; divided by divisor, as "sum" is
  // Returns (loss, gradient), as above. See ensdistill/loss/multilabel.py.
  m.def(
      "multilabel_loss(Tensor student, Tensor targets, Tensor? scale, Tensor? offset, Tensor? ids, Tensor? tail, Tensor? weights, "
      "Tensor? labels, Tensor? mask, Tensor? class_weights, Tensor? pos_weight, Tensor? sample_weights, str kind, float temperature, "
      "float alpha, str combiner, str tail_mode, float label_smoothing, str reduction, float divisor, bool with_gradient) "
      "-> (Tensor, Tensor)");

  // gradient *= factor, a float on the gradient's device: how a gradient that the forward made meets the upstream one. CUDA only.
  // A factor of 1, the usual one, costs reading it: whether it is, only the device knows without waiting.
  m.def("scale_gradient(Tensor(a!) gradient, Tensor factor) -> ()");

  // Encoders: the logits of K members for N rows, made small. Each returns last the rows' KL divergence from its inputs,
  // float64, NaN where a row has no distribution (NaN, +inf, no class left). targets, scale, offset, weights: as above, with
  // targets [K, N, C] and unit stride over the classes. See ensdistill/encoders.py.

  // logits [K, N, C] -> codes [K, N, C] uint8, scale and offset [K, N] float32, kl [K, N]
  m.def("encode_uint8(Tensor logits) -> (Tensor, Tensor, Tensor, Tensor)");
  // -> ids [N, k] int32 (int64 from C = 2^31 on), log_probs [N, k] float32, tail_log_mass [N] float32, kl [N]
  m.def(
      "encode_top_k(Tensor targets, Tensor? scale, Tensor? offset, Tensor? weights, float temperature, str combiner, int k) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // row_ids [N] int64, None: 0..N-1; with the seed they decide the draws -> ids [N, min(draws, C)], counts int32, kl [N]
  m.def(
      "encode_counts(Tensor targets, Tensor? scale, Tensor? offset, Tensor? weights, float temperature, str combiner, int draws, "
      "int seed, Tensor? row_ids) -> (Tensor, Tensor, Tensor)");
}
