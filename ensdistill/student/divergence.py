"""A loss that is not finite: at which step, and why in all likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from ensdistill.common.optimization import Optimization
from ensdistill.student.batches import Batch, Batches
from ensdistill.student.inputs import Inputs
from ensdistill.student.resume import Checkpoint

EXTREME = 1e4  # an input of this size is no standardised number


def diverged(
    optimization: Optimization,
    batches: Batches,
    checkpoint: Checkpoint,
    done: int,
    losses: Tensor,
    own: Tensor,
) -> FloatingPointError:
    """The error for mean losses [steps] after the first ``done`` steps, of which one is not finite; ``own``
    are those of this process."""
    bad, engine = int(losses.isfinite().logical_not().nonzero()[0]), checkpoint.engine
    step = done + bad  # of the batch, from 0; messages count from 1, as hooks and logs do
    if own[bad].isfinite():
        cause = "it is that of another process, whose error names the likeliest cause"
    else:
        batch = next(b for b in batches.block(done, engine.group, engine.device) if b.step == step)
        cause = _cause(batch, engine.precision, optimization)
    kept = ""
    if checkpoint.files is not None and checkpoint.saved:
        kept = f"; the last good checkpoint, of step {checkpoint.saved}, is kept in {checkpoint.files}"
    return FloatingPointError(
        f"student: the loss is {losses[bad].item()} at step {step + 1} of {optimization.steps}; {cause}{kept}"
    )


def _cause(batch: Batch, precision: str, optimization: Optimization) -> str:
    """The likeliest cause, and its remedy: facts about the step's batch come before guesses."""
    found = _extreme_input(batch.inputs, batch) or _wrong_target(batch)
    if found is not None:
        return found
    lower = f"lower optimization.learning_rate ({optimization.learning_rate})"
    if precision == "fp16":
        return f"its inputs and targets are fine, so blame fp16, which ends at 65504: choose bf16, or {lower}"
    if batch.step == 0:
        return "its inputs and targets are fine, so look at the student's first weights and at the loss"
    return f"its inputs and targets are fine, so the likeliest cause is the learning rate: {lower}"


def _extreme_input(inputs: Inputs, batch: Batch) -> str | None:
    for name, part in inputs.items() if isinstance(inputs, dict) else [("", inputs)]:
        if not part.is_floating_point() or not part.numel():
            continue
        largest = torch.nan_to_num(part.abs().reshape(len(part), -1), nan=torch.inf, posinf=torch.inf)
        largest = largest.amax(1)
        if (size := largest.max().item()) > EXTREME:
            row = int(largest.argmax())
            size = torch.nan if part[row].isnan().any() else size
            uid, where = int(batch.uids[row]), f" in {name!r}" if name else ""
            return (
                f"the likeliest cause is an extreme input: uid {uid} holds a value of {size:g}{where}; clean "
                "or scale the inputs, for example by a preprocess"
            )
    return None


def _wrong_target(batch: Batch) -> str | None:
    if (mean := getattr(batch.targets, "mean", None)) is not None:  # moments of a regression
        return _target_of((~mean.isfinite()).any(2).any(0), batch, "predictions")
    if not hasattr(batch.targets, "to_logits"):
        return None
    logits = batch.targets.to_logits()  # [K, B, C]; a class that is ruled out has -inf
    empty = (logits == -torch.inf).all(2)
    wrong = ((logits.isnan() | (logits == torch.inf)).any(2) | empty).any(0)
    return _target_of(wrong, batch, "logits")


def _target_of(wrong: Tensor, batch: Batch, outputs: str) -> str | None:
    if not wrong.any():
        return None
    uid = int(batch.uids[int(wrong.nonzero()[0])])
    return (
        f"the likeliest cause is the target of uid {uid}, which is not finite: look at the members' {outputs}"
    )
