"""Bad arguments of distillation_loss: the message names the argument, the value and the expectation."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from loss_calls import CODES, COUNTS, FLOATS, HARD, INF, LABELS, NAN, NO_GRADIENT, STUDENT, TARGETS, TOP

from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits

BAD = [
    # student_logits
    ({"student_logits": np.zeros((5, 10))}, TypeError, "student_logits: expected a Tensor; got ndarray"),
    (
        {"student_logits": torch.zeros(5, 0)},
        ValueError,
        "student_logits: expected at least one class; got shape [5, 0]",
    ),
    ({"student_logits": torch.zeros(())}, ValueError, "student_logits: expected [..., C]; got shape []"),
    (
        {"student_logits": torch.zeros(5, 10, dtype=torch.int64)},
        TypeError,
        f"student_logits: expected {FLOATS}; got torch.int64",
    ),
    (
        {"student_logits": torch.zeros(5, 10, dtype=torch.complex64)},
        TypeError,
        f"student_logits: expected {FLOATS}; got torch.complex64",
    ),
    # devices
    (
        {"targets": TARGETS.to("meta")},
        ValueError,
        "targets: on device meta, but the student is on cpu; move one of them",
    ),
    (
        {"targets": replace(CODES, scale=CODES.scale.to("meta"))},
        ValueError,
        "targets.scale: on device meta, but the student is on cpu",
    ),
    (
        {"labels": LABELS.to("meta")},
        ValueError,
        "labels: on device meta, but the student is on cpu; move one of them",
    ),
    # labels
    ({"labels": LABELS.to(torch.int32)}, TypeError, "labels: expected a torch.int64 Tensor; got torch.int32"),
    ({"labels": LABELS.float()}, TypeError, "labels: expected a torch.int64 Tensor; got torch.float32"),
    (
        {"labels": [0, 1, 2, 3, 4]},
        TypeError,
        "labels: expected a torch.int64 Tensor; got a builtins.list; pass torch.as_tensor(labels)",
    ),
    (
        {"labels": np.arange(5)},
        TypeError,
        "labels: expected a torch.int64 Tensor; got a numpy.ndarray; pass torch.as_tensor(labels)",
    ),
    (
        {"labels": LABELS[:4]},
        ValueError,
        "labels: expected [5], one for each of the student's rows; got shape [4]",
    ),
    (
        {"labels": LABELS[:, None]},
        ValueError,
        "labels: expected [5], one for each of the student's rows; got shape [5, 1]",
    ),
    (
        {"labels": torch.tensor([0, 1, 10, 3, 11])},
        ValueError,
        "labels: expected 0..9 or ignore_index -100; got 10 in row 2",
    ),
    (
        {"labels": torch.tensor([0, 1, 2, 3, -1])},
        ValueError,
        "labels: expected 0..9 or ignore_index -100; got -1 in row 4",
    ),
    (
        {"labels": torch.tensor([0, -100, 2, 3, 4]), "ignore_index": -1},
        ValueError,
        "labels: expected 0..9 or ignore_index -1; got -100 in row 1",
    ),
    (
        {"alpha": 0.9},
        ValueError,
        "labels: needed for alpha = 0.9, which mixes in hard labels; pass labels or alpha=1.0",
    ),
    # numbers
    *(
        ({"temperature": t}, ValueError, f"temperature: expected a number from 0.0001 to 10000; got {t!r}")
        for t in (0, 0.0, -1.0, NAN, INF, -INF, "2", None, 0.9e-4, 1.1e4)
    ),
    *(
        ({"alpha": a, "labels": LABELS}, ValueError, f"alpha: expected a number from 0 to 1; got {a!r}")
        for a in (-0.1, 1.5, NAN, INF, "1", None)
    ),
    *(
        ({"label_smoothing": e}, ValueError, f"label_smoothing: expected a number from 0 to 1; got {e!r}")
        for e in (-0.1, 1.1, NAN, None)
    ),
    *(
        ({"ignore_index": i}, TypeError, f"ignore_index: expected an int; got {i!r}")
        for i in (None, -100.0, "no")
    ),
    *(
        ({"beta": b}, ValueError, f"beta: expected a number between 0 and 1, neither of them; got {b!r}")
        for b in (0, 1, -0.5, NAN, None)
    ),
    *(
        ({"z_loss": z}, ValueError, f"z_loss: expected a finite number of at least 0; got {z!r}")
        for z in (-0.1, INF, NAN, None)
    ),
    *(
        (
            {"class_dim": d},
            ValueError,
            f"class_dim: expected -2..1 for student_logits of shape [5, 10]; got {d}",
        )
        for d in (2, -3)
    ),
    ({"class_dim": 1.0}, TypeError, "class_dim: expected an int; got 1.0"),
    # weights of rows and classes
    (
        {"sample_weights": torch.ones(4)},
        ValueError,
        "sample_weights: expected one for each of the student's rows, [5]; got shape [4]",
    ),
    (
        {"sample_weights": [1, 1, -1, 1, 1]},
        ValueError,
        "sample_weights: expected finite numbers of at least 0; got [1, 1, -1, 1, 1]",
    ),
    (
        {"sample_weights": torch.full((5,), NAN)},
        ValueError,
        "sample_weights: expected finite numbers of at least 0; got [nan, nan",
    ),
    (
        {"class_weights": torch.ones(5), **HARD},
        ValueError,
        "class_weights: expected one for each class, [10]; got shape [5]",
    ),
    (
        {"class_weights": -torch.ones(10), **HARD},
        ValueError,
        "class_weights: expected finite numbers of at least 0; got [-1.0",
    ),
    (
        {"class_weights": torch.full((10,), INF), **HARD},
        ValueError,
        "class_weights: expected finite numbers of at least 0; got [inf",
    ),
    (
        {"class_weights": "balanced", **HARD},
        TypeError,
        "class_weights: expected a Tensor or a sequence of 10 numbers; got 'balanced'",
    ),
    # weights
    (
        {"weights": [0.5, -0.5, 1.0]},
        ValueError,
        "weights: expected finite numbers of at least 0; got [0.5, -0.5, 1.0]",
    ),
    (
        {"weights": torch.tensor([0.5, NAN, 1.0])},
        ValueError,
        "weights: expected finite numbers of at least 0; got [0.5, nan, 1.0]",
    ),
    (
        {"weights": [0.5, INF, 1.0]},
        ValueError,
        "weights: expected finite numbers of at least 0; got [0.5, inf, 1.0]",
    ),
    ({"weights": [0, 0, 0]}, ValueError, "weights: expected a sum above 0; got [0, 0, 0]"),
    (
        {"weights": [1.0, 2.0]},
        ValueError,
        "weights: expected one for each of the 3 members, [3]; got shape [2]",
    ),
    (
        {"weights": torch.ones(3, 5)},
        ValueError,
        "weights: expected one for each of the 3 members, [3]; got shape [3, 5]",
    ),
    ({"weights": 2.0}, ValueError, "weights: expected one for each of the 3 members, [3]; got shape []"),
    ({"weights": "equal"}, TypeError, "weights: expected a Tensor or a sequence of 3 numbers; got 'equal'"),
    (
        {"weights": [1.0, None, 1.0]},
        TypeError,
        "weights: expected a Tensor or a sequence of 3 numbers; got [1.0, None, 1.0]",
    ),
    (
        {"weights": {"a": 1.0}},
        TypeError,
        "weights: expected a Tensor or a sequence of 3 numbers; got {'a': 1.0}",
    ),
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
    (
        {"weights": [1e308, 1e308, 1.0]},
        ValueError,
        "weights: expected a sum of at most 1e+300; got [1e+308, 1e+308, 1.0]",
    ),
    (
        {"weights": [1e301, 1.0, 1.0]},
        ValueError,
        "weights: expected a sum of at most 1e+300; got [1e+301, 1.0, 1.0]",
    ),
    ({"weights": [10**400, 1, 1]}, ValueError, "weights: expected numbers that a float64 holds; got [1000"),
    (
        {"weights": torch.ones(3).to("meta")},
        ValueError,
        "weights: on device meta, but the student is on cpu; move one of them",
    ),
    # tensors that no gradient flows to
    (
        {"weights": torch.ones(3, requires_grad=True)},
        ValueError,
        f"weights: {NO_GRADIENT}; pass weights.detach()",
    ),
    (
        {"sample_weights": torch.ones(5, requires_grad=True)},
        ValueError,
        f"sample_weights: {NO_GRADIENT}; pass sample_weights.detach()",
    ),
    (
        {"class_weights": torch.ones(10, requires_grad=True), **HARD},
        ValueError,
        f"class_weights: {NO_GRADIENT}; pass class_weights.detach()",
    ),
    # settings without effect
    *(
        (
            changes,
            ValueError,
            f"{next(iter(changes))}: is of the hard labels' cross entropy, but labels is None",
        )
        for changes in ({"label_smoothing": 0.1}, {"class_weights": torch.ones(10)})
    ),
    *(
        (
            {"targets": target, "combiner": combiner},
            ValueError,
            f"combiner: {type(target).__name__} is one distribution, which has no members to combine; got "
            f"'{combiner}'",
        )
        for target, combiner in product((TOP, COUNTS), ("logit", "log_prob"))
    ),
    # layouts
    *(
        (
            {name: value.to_sparse(), **HARD} | ({"labels": LABELS.to_sparse()} if name == "labels" else {}),
            TypeError,
            message,
        )
        for name, value in (
            ("student_logits", STUDENT),
            ("targets", TARGETS),
            ("labels", LABELS),
            ("weights", torch.ones(3)),
            ("class_weights", torch.ones(10)),
        )
        for message in (
            f"{name}: expected a dense Tensor; got one of layout torch.sparse_coo; pass {name}.to_dense()",
        )
    ),
    # flags
    *(
        ({name: value}, TypeError, f"{name}: expected a bool; got {value!r}")
        for name, value in product(("statistics", "recompute"), (1, None, "yes"))
    ),
    *(
        (
            {"ignore_index": i, **HARD},
            ValueError,
            f"ignore_index: expected {-(2**63)} to {2**63 - 1}, what int64 holds; got {i}",
        )
        for i in (2**63, -(2**63) - 1)
    ),
    ({"ignore_index": True}, TypeError, "ignore_index: expected an int; got True"),
    # names
    ({"combiner": "mean"}, ValueError, "combiner: expected one of prob, logit, log_prob; got 'mean'"),
    (
        {"reduction": "average"},
        ValueError,
        "reduction: expected one of mean, sum, batchmean, none; got 'average'",
    ),
    ({"reduction": None}, ValueError, "reduction: expected one of mean, sum, batchmean, none; got None"),
    (
        {"divergence": "kl"},
        ValueError,
        "divergence: expected one of forward_kl, reverse_kl, jsd, tvd; got 'kl'",
    ),
    ({"tail": "rest"}, ValueError, "tail: expected one of tail, renormalize, zero; got 'rest'"),
    ({"impl": "eager"}, ValueError, "impl: expected one of fused, reference, compile; got 'eager'"),
]


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("changes", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(changes, error, message, impl):
    arguments = {"student_logits": STUDENT, "targets": TARGETS, "impl": impl, **changes}
    with pytest.raises(error, match=re.escape(message)):
        distillation_loss(**arguments)


def test_forgotten_class_dim_is_guessed_in_the_message():
    maps, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape("labels: expected [2, 3, 4]") + ".*pass class_dim=1"):
        distillation_loss(maps, maps, labels)
    assert distillation_loss(maps, maps, labels, class_dim=1) == 0


def test_a_bad_call_leaves_no_trace():
    student = STUDENT.clone().requires_grad_()
    with pytest.raises(ValueError, match="alpha"):
        distillation_loss(student, TARGETS, alpha=2.0)
    assert student.grad is None
    assert isinstance(CODES, QuantizedLogits)
    assert torch.equal(student, STUDENT)
