"""Every bad input of distillation_loss: the message names the argument, what came and what was expected."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import make_codes, make_logits

from ensdistill.functional import distillation_loss
from ensdistill.targets import EnsembleLogits, QuantizedLogits

STUDENT, TARGETS, CODES = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1), make_codes(3, 5, 10, seed=1)
LABELS = torch.arange(5)
NAN, INF = float("nan"), float("inf")
FLOATS = "float64, float32, bfloat16, float16"

BAD = [
    # student_logits
    ({"student_logits": np.zeros((5, 10))}, TypeError, "student_logits: expected a Tensor; got ndarray"),
    ({"student_logits": torch.zeros(10)}, ValueError, "student_logits: expected [N, C] with C >= 1; got shape [10]"),
    ({"student_logits": torch.zeros(1, 5, 10)}, ValueError, "student_logits: expected [N, C] with C >= 1; got shape [1, 5, 10]"),
    ({"student_logits": torch.zeros(5, 0)}, ValueError, "student_logits: expected [N, C] with C >= 1; got shape [5, 0]"),
    ({"student_logits": torch.zeros(5, 10, dtype=torch.int64)}, TypeError, f"student_logits: expected {FLOATS}; got torch.int64"),
    ({"student_logits": torch.zeros(5, 10, dtype=torch.complex64)}, TypeError, f"student_logits: expected {FLOATS}; got torch.complex64"),
    # targets
    ({"targets": TARGETS.numpy()}, TypeError, "targets: expected a Tensor of logits, EnsembleLogits or QuantizedLogits; got ndarray"),
    ({"targets": [TARGETS[0]]}, TypeError, "targets: expected a Tensor of logits, EnsembleLogits or QuantizedLogits; got list"),
    ({"targets": torch.zeros(10)}, ValueError, "targets: expected logits [K, N, C] or [N, C]; got shape [10]"),
    ({"targets": EnsembleLogits(TARGETS[0])}, ValueError, "targets: expected [K, N, C] with K >= 1; got shape [5, 10]"),
    ({"targets": TARGETS[:0]}, ValueError, "targets: expected [K, N, C] with K >= 1; got shape [0, 5, 10]"),
    ({"targets": TARGETS[..., :9]}, ValueError, "targets: 9 classes, but student_logits has 10 (shapes [3, 5, 9] and [5, 10])"),
    ({"targets": TARGETS[:, :4]}, ValueError, "targets: 4 rows, but student_logits has 5 (shapes [3, 4, 10] and [5, 10])"),
    ({"targets": TARGETS[0, :1]}, ValueError, "targets: 1 rows, but student_logits has 5 (shapes [1, 1, 10] and [5, 10])"),
    ({"targets": TARGETS.to(torch.int32)}, TypeError, f"targets: expected {FLOATS} logits; got torch.int32"),
    ({"targets": CODES.codes}, TypeError, "got torch.uint8; wrap codes in QuantizedLogits with their scale and offset"),
    ({"targets": EnsembleLogits(TARGETS.numpy())}, TypeError, "targets: expected Tensors inside EnsembleLogits; got ndarray"),
    ({"targets": replace(CODES, codes=CODES.codes.numpy())}, TypeError, "targets: expected Tensors inside QuantizedLogits; got ndarray"),
    ({"targets": replace(CODES, codes=CODES.codes.to(torch.int8))}, TypeError, "targets.codes: expected torch.uint8; got torch.int8"),
    ({"targets": replace(CODES, scale=CODES.scale.double())}, TypeError, "targets.scale: expected torch.float32; got torch.float64"),
    ({"targets": replace(CODES, offset=1.0)}, TypeError, "targets.offset: expected torch.float32; got float"),
    ({"targets": replace(CODES, scale=CODES.scale[:, :4])}, ValueError, "targets.scale: expected [K, N] = [3, 5]; got shape [3, 4]"),
    (
        {"targets": replace(CODES, offset=CODES.offset[..., None])},
        ValueError,
        "targets.offset: expected [K, N] = [3, 5]; got shape [3, 5, 1]",
    ),
    ({"targets": make_codes(3, 4, 10, seed=0)}, ValueError, "targets: 4 rows, but student_logits has 5 (shapes [3, 4, 10] and [5, 10])"),
    # devices
    ({"targets": TARGETS.to("meta")}, ValueError, "targets: on device meta, but student_logits is on cpu; move one of them"),
    ({"targets": replace(CODES, scale=CODES.scale.to("meta"))}, ValueError, "targets.scale: on device meta, but student_logits is on cpu"),
    ({"labels": LABELS.to("meta")}, ValueError, "labels: on device meta, but student_logits is on cpu; move one of them"),
    # labels
    ({"labels": LABELS.to(torch.int32)}, TypeError, "labels: expected a torch.int64 Tensor [N]; got torch.int32"),
    ({"labels": LABELS.float()}, TypeError, "labels: expected a torch.int64 Tensor [N]; got torch.float32"),
    ({"labels": [0, 1, 2, 3, 4]}, TypeError, "labels: expected a torch.int64 Tensor [N]; got list"),
    ({"labels": LABELS[:4]}, ValueError, "labels: expected [5], one for each row of student_logits; got shape [4]"),
    ({"labels": LABELS[:, None]}, ValueError, "labels: expected [5], one for each row of student_logits; got shape [5, 1]"),
    ({"labels": torch.tensor([0, 1, 10, 3, 11])}, ValueError, "labels: expected 0..9 or ignore_index -100; got 10 in row 2"),
    ({"labels": torch.tensor([0, 1, 2, 3, -1])}, ValueError, "labels: expected 0..9 or ignore_index -100; got -1 in row 4"),
    (
        {"labels": torch.tensor([0, -100, 2, 3, 4]), "ignore_index": -1},
        ValueError,
        "labels: expected 0..9 or ignore_index -1; got -100 in row 1",
    ),
    ({"alpha": 0.9}, ValueError, "labels: needed for alpha = 0.9, which mixes in hard labels; pass labels or alpha=1.0"),
    # numbers
    *(
        ({"temperature": t}, ValueError, f"temperature: expected a finite number above 0; got {t!r}")
        for t in (0, 0.0, -1.0, NAN, INF, -INF, "2", None)
    ),
    *(
        ({"alpha": a, "labels": LABELS}, ValueError, f"alpha: expected a number from 0 to 1; got {a!r}")
        for a in (-0.1, 1.5, NAN, INF, "1", None)
    ),
    *(({"label_smoothing": e}, ValueError, f"label_smoothing: expected a number from 0 to 1; got {e!r}") for e in (-0.1, 1.1, NAN, None)),
    *(({"ignore_index": i}, TypeError, f"ignore_index: expected an int; got {i!r}") for i in (None, -100.0, "no")),
    # weights
    ({"weights": [0.5, -0.5, 1.0]}, ValueError, "weights: expected finite numbers of at least 0; got [0.5, -0.5, 1.0]"),
    ({"weights": torch.tensor([0.5, NAN, 1.0])}, ValueError, "weights: expected finite numbers of at least 0; got [0.5, nan, 1.0]"),
    ({"weights": [0.5, INF, 1.0]}, ValueError, "weights: expected finite numbers of at least 0; got [0.5, inf, 1.0]"),
    ({"weights": [0, 0, 0]}, ValueError, "weights: expected a sum above 0; got [0, 0, 0]"),
    ({"weights": [1.0, 2.0]}, ValueError, "weights: expected one for each of the 3 members, [3]; got shape [2]"),
    ({"weights": torch.ones(3, 5)}, ValueError, "weights: expected one for each of the 3 members, [3]; got shape [3, 5]"),
    ({"weights": 2.0}, ValueError, "weights: expected one for each of the 3 members, [3]; got shape []"),
    ({"weights": "equal"}, TypeError, "weights: expected a Tensor or a sequence of 3 numbers; got 'equal'"),
    ({"weights": [1.0, None, 1.0]}, TypeError, "weights: expected a Tensor or a sequence of 3 numbers; got [1.0, None, 1.0]"),
    ({"weights": {"a": 1.0}}, TypeError, "weights: expected a Tensor or a sequence of 3 numbers; got {'a': 1.0}"),
    ({"weights": torch.tensor([1j, 1, 1])}, TypeError, "weights: expected real numbers; got torch.complex64"),
    (
        {"targets": EnsembleLogits(TARGETS, torch.ones(2))},
        ValueError,
        "weights: expected one for each of the 3 members, [3]; got shape [2]",
    ),
    (
        {"targets": replace(CODES, weights=-torch.ones(3))},
        ValueError,
        "weights: expected finite numbers of at least 0; got [-1.0, -1.0, -1.0]",
    ),
    # names
    ({"combiner": "mean"}, ValueError, "combiner: expected one of prob, logit, log_prob; got 'mean'"),
    ({"reduction": "batchmean"}, ValueError, "reduction: expected one of mean, sum, none; got 'batchmean'"),
    ({"reduction": None}, ValueError, "reduction: expected one of mean, sum, none; got None"),
    ({"impl": "eager"}, ValueError, "impl: expected one of fused, reference, compile; got 'eager'"),
]


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)])
def test_bad_input_is_named(changes, error, message, impl):
    arguments = {"student_logits": STUDENT, "targets": TARGETS, "impl": impl, **changes}
    with pytest.raises(error, match=re.escape(message)):
        distillation_loss(**arguments)


def test_the_good_arguments_are_good():
    """So that the cases above fail for what they change, and for nothing else."""
    for targets in (TARGETS, CODES, EnsembleLogits(TARGETS, torch.ones(3))):
        assert distillation_loss(STUDENT, targets).isfinite()
        assert distillation_loss(STUDENT, targets, LABELS, alpha=0.9, ignore_index=-1, weights=[0.0, 1.0, 2.0]).isfinite()


@pytest.mark.parametrize("temperature", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_numbers_of_any_kind_are_numbers(temperature):
    assert distillation_loss(STUDENT, TARGETS, temperature=temperature) == distillation_loss(STUDENT, TARGETS, temperature=2.0)


def test_masked_classes_and_empty_batches_are_legal():
    masked = TARGETS.clone()
    masked[..., 2] = -torch.inf
    assert distillation_loss(STUDENT, masked).isfinite()
    assert distillation_loss(STUDENT[:0], TARGETS[:, :0]) == 0


def test_a_bad_call_leaves_no_trace():
    student = STUDENT.clone().requires_grad_()
    with pytest.raises(ValueError, match="alpha"):
        distillation_loss(student, TARGETS, alpha=2.0)
    assert student.grad is None
    assert isinstance(CODES, QuantizedLogits)
    assert torch.equal(student, STUDENT)
