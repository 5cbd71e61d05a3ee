"""Every mistake in a call of the multi-label loss is named, with what came and what was expected."""

from dataclasses import replace

import pytest
import torch

from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, TopK

STUDENT, TARGETS, LABELS = torch.zeros(3, 4), torch.zeros(2, 3, 4), torch.ones(3, 4)
HARD = {"labels": LABELS, "alpha": 0.5}
TOP = TopK(torch.tensor([[0, 1]] * 3), torch.full((3, 2), -1.0), torch.zeros(3))


def bad(x, value):
    x = x.clone()
    x[1, 2] = value
    return x


CASES = [
    ({"student_logits": [1.0]}, TypeError, "student_logits: expected a Tensor; got list"),
    ({"student_logits": torch.zeros(())}, ValueError, r"student_logits: expected \[..., C\]; got shape \[\]"),
    ({"targets": torch.zeros(2, 3, 5)}, ValueError, "targets: 5 classes, but the student has 4"),
    (
        {"targets": Counts(torch.zeros(3, 2).long(), torch.ones(3, 2))},
        TypeError,
        "targets: Counts are draws of one class each",
    ),
    (
        {"targets": EnsembleLogits(TARGETS, max_temperature=2.0)},
        ValueError,
        "targets: some of their rows were stored for a softmax",
    ),
    (
        {"targets": Probs(bad(STUDENT, 1.5))},
        ValueError,
        "targets.probs: expected 0 to 1; got 1.5 in row 1, class 2",
    ),
    (
        {"targets": Probs(bad(TARGETS[0], -0.1).expand(2, 3, 4))},
        ValueError,
        "targets.probs: expected 0 to 1; got -0.1 in row 1, class 2 of member 0",
    ),
    (
        {"targets": LogProbs(bad(STUDENT, 0.5))},
        ValueError,
        "targets.log_probs: expected logarithms of probabilities, at most 0; got 0.5 in row 1, class 2",
    ),
    (
        {"targets": Probs(STUDENT, temperature=2.0)},
        ValueError,
        "temperature: 1.0, but targets .* made at 2.0",
    ),
    ({"targets": replace(TOP, ids=TOP.ids + 3)}, ValueError, r"targets.ids: expected 0\.\.3; got 4 in row 0"),
    (
        {"targets": replace(TOP, ids=TOP.ids * 0)},
        ValueError,
        "targets.ids: expected each id once in a row; got 0",
    ),
    (
        {"targets": replace(TOP, log_probs=-TOP.log_probs)},
        ValueError,
        "targets.log_probs: expected logarithms of probabilities, at most 0; got 1 in row 0",
    ),
    (
        {"targets": replace(TOP, tail_log_mass=torch.ones(3))},
        ValueError,
        r"targets.tail_log_mass: expected at most log\(2\), of the sum .* got 1 in row 0",
    ),
    (
        {"targets": TOP, "tail": "renormalize"},
        ValueError,
        "tail: expected one of tail, zero; got 'renormalize'",
    ),
    ({"targets": TOP, "weights": [1.0]}, ValueError, "weights: TopK is one mixture"),
    ({"targets": TOP, "combiner": "logit"}, ValueError, "combiner: TopK is one mixture"),
    ({"alpha": 0.5}, ValueError, "labels: needed for alpha = 0.5"),
    ({"label_smoothing": 0.1}, ValueError, "label_smoothing: is of the labels' cross entropy"),
    ({"pos_weight": torch.ones(4)}, ValueError, "pos_weight: is of the labels' cross entropy"),
    (
        {**HARD, "labels": torch.ones(3)},
        ValueError,
        r"labels: expected \[3, 4\].*got shape \[3\]; pass one-hot",
    ),
    ({**HARD, "labels": [1, 0]}, TypeError, "labels: expected a Tensor; got a list; pass torch.as_tensor"),
    ({**HARD, "labels": LABELS.to(torch.complex64)}, TypeError, "labels: expected .*; got torch.complex64"),
    (
        {**HARD, "labels": bad(LABELS, torch.nan)},
        ValueError,
        "labels: expected numbers from 0 to 1, or -1 where unknown; got nan in row 1, class 2",
    ),
    ({**HARD, "labels": bad(LABELS.int(), 2)}, ValueError, "labels: .* got 2 in row 1, class 2"),
    ({**HARD, "labels": bad(LABELS, -100)}, ValueError, "labels: .* got -100 in row 1, class 2"),
    (
        {"mask": torch.ones(3, 4)},
        TypeError,
        "mask: expected torch.bool, True where a class counts; got torch.float32",
    ),
    ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, r"mask: expected \[3, 4\].*got shape \[4\]"),
    ({"class_weights": torch.ones(3)}, ValueError, r"class_weights: expected one for each class, \[4\]"),
    ({**HARD, "pos_weight": -torch.ones(4)}, ValueError, "pos_weight: expected finite numbers of at least 0"),
    ({"sample_weights": torch.ones(4)}, ValueError, r"sample_weights: expected one for each .*rows, \[3\]"),
    ({"weights": [1.0]}, ValueError, r"weights: expected one for each of the 2 members, \[2\]"),
    ({"divergence": "jsd"}, ValueError, "divergence: expected its default.*got 'jsd'"),
    ({"beta": 0.3}, ValueError, "beta: expected its default"),
    (
        {"z_loss": 0.1},
        ValueError,
        "z_loss: expected its default, since sigmoids have no log-sum-exp; got 0.1",
    ),
    ({"ignore_index": -1}, ValueError, "ignore_index: expected its default, since unknown labels are -1"),
    ({"temperature": 0}, ValueError, "temperature: expected a number from 0.0001"),
    ({"impl": "fast"}, ValueError, "impl: expected one of"),
    ({"class_dim": 2}, ValueError, r"class_dim: expected -2\.\.1"),
]


@pytest.mark.parametrize(("change", "error", "message"), CASES, ids=[message[:40] for _, _, message in CASES])
def test_bad_input_is_named(change, error, message):
    arguments = {"student_logits": STUDENT, "targets": TARGETS} | change
    with pytest.raises(error, match=message):
        multilabel_distillation_loss(**arguments)
