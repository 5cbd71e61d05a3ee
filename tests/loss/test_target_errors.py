"""Bad targets of distillation_loss: the message names the field, the value and the expectation."""

import re
from dataclasses import replace

import pytest
import torch
from closed_forms import make_codes
from loss_calls import CODES, COUNTS, FLOATS, INF, LOG_P, NAN, STUDENT, TARGETS, TOP

from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs


def scaled_row(p, row, factor):
    return torch.cat([p[:row], factor * p[row : row + 1], p[row + 1 :]])


def with_negative(p, row):
    """A row that still has the sum 1."""
    p = p.clone()
    p[row, 3] += p[row, 7] + 0.01
    p[row, 7] = -0.01
    return p


BAD = [
    # targets
    (
        {"targets": TARGETS.numpy()},
        TypeError,
        "targets: expected a Tensor of logits, EnsembleLogits, QuantizedLogits, LogProbs, Probs, TopK or "
        "Counts; got ndarray",
    ),
    (
        {"targets": [TARGETS[0]]},
        TypeError,
        "targets: expected a Tensor of logits, EnsembleLogits, QuantizedLogits, LogProbs, Probs, TopK or "
        "Counts; got list",
    ),
    (
        {"targets": torch.zeros(10)},
        ValueError,
        "targets: expected [K, 5, 10] with K >= 1, for the student's [5, 10]; got shape [10]",
    ),
    (
        {"targets": EnsembleLogits(TARGETS[0])},
        ValueError,
        "targets: expected [K, 5, 10] with K >= 1, for the student's [5, 10]; got shape [5, 10]",
    ),
    (
        {"targets": TARGETS[:0]},
        ValueError,
        "targets: expected [K, 5, 10] with K >= 1, for the student's [5, 10]; got shape [0, 5, 10]",
    ),
    (
        {"targets": TARGETS[..., :9]},
        ValueError,
        "targets: 9 classes, but the student has 10 (shapes [3, 5, 9] and [5, 10])",
    ),
    (
        {"targets": TARGETS[:, :4]},
        ValueError,
        "targets: 4 rows, but the student has 5 rows (shapes [3, 4, 10] and [5, 10])",
    ),
    (
        {"targets": TARGETS[0, :1]},
        ValueError,
        "targets: 1 rows, but the student has 5 rows (shapes [1, 1, 10] and [5, 10])",
    ),
    ({"targets": TARGETS.to(torch.int32)}, TypeError, f"targets: expected {FLOATS} logits; got torch.int32"),
    (
        {"targets": CODES.codes},
        TypeError,
        "got torch.uint8; wrap codes in QuantizedLogits with their scale and offset",
    ),
    (
        {"targets": EnsembleLogits(TARGETS.numpy())},
        TypeError,
        "targets: expected Tensors inside EnsembleLogits; got ndarray",
    ),
    (
        {"targets": replace(CODES, codes=CODES.codes.numpy())},
        TypeError,
        "targets: expected Tensors inside QuantizedLogits; got ndarray",
    ),
    (
        {"targets": replace(CODES, codes=CODES.codes.to(torch.int8))},
        TypeError,
        "targets.codes: expected torch.uint8; got torch.int8",
    ),
    (
        {"targets": replace(CODES, scale=CODES.scale.double())},
        TypeError,
        "targets.scale: expected torch.float32; got torch.float64",
    ),
    ({"targets": replace(CODES, offset=1.0)}, TypeError, "targets.offset: expected torch.float32; got float"),
    (
        {"targets": replace(CODES, scale=CODES.scale[:, :4])},
        ValueError,
        "targets.scale: expected [3, 5], one for each member and row; got shape [3, 4]",
    ),
    (
        {"targets": replace(CODES, offset=CODES.offset[..., None])},
        ValueError,
        "targets.offset: expected [3, 5], one for each member and row; got shape [3, 5, 1]",
    ),
    (
        {"targets": make_codes(3, 4, 10, seed=0)},
        ValueError,
        "targets: 4 rows, but the student has 5 rows (shapes [3, 4, 10] and [5, 10])",
    ),
    # distributions, made at a temperature
    (
        {"targets": LogProbs(LOG_P, temperature=2.0)},
        ValueError,
        "temperature: 1.0, but targets (LogProbs) were made at 2.0",
    ),
    (
        {"targets": Probs(LOG_P.exp()), "temperature": 3.0},
        ValueError,
        "pass temperature=1.0, or make the targets anew",
    ),
    (
        {"targets": replace(TOP, temperature=4.0)},
        ValueError,
        "temperature: 1.0, but targets (TopK) were made at 4.0",
    ),
    (
        {"targets": replace(COUNTS, temperature=4.0)},
        ValueError,
        "temperature: 1.0, but targets (Counts) were made at 4.0",
    ),
    (
        {"targets": Probs(LOG_P.exp(), temperature=0.0)},
        ValueError,
        "targets.temperature: expected a number from 0.0001 to 10000; got 0.0",
    ),
    (
        {"targets": LogProbs(LOG_P[..., :4])},
        ValueError,
        "targets: 4 classes, but the student has 10 (shapes [3, 5, 4] and [5, 10])",
    ),
    (
        {"targets": Probs(LOG_P.exp().half().to(torch.int32))},
        TypeError,
        f"targets: expected {FLOATS} probs; got torch.int32",
    ),
    ({"targets": Probs(LOG_P)}, ValueError, "targets.probs: expected no negative probability; got -"),
    (
        {"targets": Probs(2 * LOG_P.exp())},
        ValueError,
        "targets.probs: expected probabilities whose sum is 1 to within 0.05; got a sum of 2 in row 0 of "
        "member 0",
    ),
    (
        {"targets": Probs(with_negative(LOG_P[0].exp(), 2))},
        ValueError,
        "targets.probs: expected no negative probability; got -0.01 in row 2",
    ),
    ({"targets": Probs(scaled_row(LOG_P[1].exp(), 3, 1.06))}, ValueError, "got a sum of 1.06 in row 3"),
    # top k and counts
    (
        {"targets": replace(TOP, ids=TOP.ids.float())},
        TypeError,
        "targets.ids: expected int32, int64; got torch.float32",
    ),
    (
        {"targets": replace(TOP, ids=TOP.ids[:4])},
        ValueError,
        "targets.ids: expected [5, k] with k >= 1, for the student's 5 rows; got",
    ),
    ({"targets": replace(TOP, ids=TOP.ids.tolist())}, TypeError, "targets.ids: expected a Tensor; got list"),
    ({"targets": replace(TOP, ids=TOP.ids + 5)}, ValueError, "targets.ids: expected 0..9; got 1"),
    ({"targets": replace(TOP, ids=TOP.ids - 10)}, ValueError, "targets.ids: expected 0..9; got -"),
    (
        {"targets": replace(TOP, ids=torch.full_like(TOP.ids, 7))},
        ValueError,
        "targets.ids: expected each id once in a row; got 7 twice in row 0",
    ),
    (
        {"targets": replace(TOP, log_probs=TOP.log_probs[:, :2])},
        ValueError,
        "targets.log_probs: expected the shape of ids, [5, 3]; got shape",
    ),
    (
        {"targets": replace(TOP, log_probs=TOP.ids)},
        TypeError,
        f"targets.log_probs: expected {FLOATS}; got torch.int32",
    ),
    (
        {"targets": replace(TOP, log_probs=TOP.log_probs.exp())},
        ValueError,
        "targets.log_probs: expected log-probabilities and tail_log_mass",
    ),
    (
        {"targets": replace(TOP, log_probs=TOP.log_probs.exp()), "tail": "zero"},
        ValueError,
        "expected log-probabilities, exp sum at most 1; got",
    ),
    (
        {"targets": replace(TOP, tail_log_mass=None)},
        ValueError,
        "tail: 'tail' needs targets.tail_log_mass, which is None; pass it, or",
    ),
    (
        {"targets": replace(TOP, tail_log_mass=TOP.tail_log_mass[:3])},
        ValueError,
        "targets.tail_log_mass: expected [5], one for each row; got",
    ),
    (
        {"targets": replace(TOP, tail_log_mass=TOP.tail_log_mass.half())},
        TypeError,
        "targets.tail_log_mass: expected float32 or float64; got",
    ),
    (
        {"targets": replace(TOP, tail_log_mass=TOP.tail_log_mass - 20)},
        ValueError,
        "targets.log_probs: expected log-probabilities and tail",
    ),
    (
        {"targets": TOP, "weights": [1.0]},
        ValueError,
        "weights: TopK is one distribution, which has no members to weigh; got [1.0]",
    ),
    (
        {"targets": TOP, "tail": "zero", "divergence": "reverse_kl"},
        ValueError,
        "divergence: reverse_kl is infinite with tail='zero'",
    ),
    (
        {"targets": TOP, "tail": "renormalize", "divergence": "reverse_kl"},
        ValueError,
        "reverse_kl is infinite with tail='renormalize'",
    ),
    (
        {"targets": COUNTS, "tail": "zero"},
        ValueError,
        "tail: 'zero' keeps the listed classes' masses, which Counts don't have",
    ),
    (
        {"targets": COUNTS, "divergence": "reverse_kl"},
        ValueError,
        "divergence: reverse_kl is infinite with Counts",
    ),
    *(
        (
            {"targets": replace(COUNTS, counts=COUNTS.counts.double().masked_fill(COUNTS.counts > 0, count))},
            ValueError,
            "targets.counts: expected finite numbers of at least 0; got a negative or infinite one or NaN "
            "in row 0",
        )
        for count in (-1, NAN, INF)
    ),
    (
        {"targets": replace(COUNTS, counts=0 * COUNTS.counts)},
        ValueError,
        "targets: expected mass on at least one class; got only padding in row 0",
    ),
    (
        {"targets": replace(COUNTS, counts=COUNTS.counts > 0)},
        TypeError,
        "targets.counts: expected integers or floating-point numbers; got",
    ),
    # log-probabilities that are none
    (
        {"targets": LogProbs(LOG_P + 0.06)},
        ValueError,
        "targets.log_probs: expected log-probabilities whose log-sum-exp is 0 to within 0.05",
    ),
    (
        {"targets": LogProbs(LOG_P[0].exp())},
        ValueError,
        "in row 0; of logits pass EnsembleLogits, of probabilities Probs",
    ),
    ({"targets": LogProbs(scaled_row(LOG_P[1], 4, 0.1)[None])}, ValueError, "in row 4; of logits pass"),
    (
        {"targets": LogProbs(torch.stack([LOG_P[0], TARGETS[0]]))},
        ValueError,
        "in row 0 of member 1; of logits pass",
    ),
]


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("changes", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_targets_are_named(changes, error, message, impl):
    arguments = {"student_logits": STUDENT, "targets": TARGETS, "impl": impl, **changes}
    with pytest.raises(error, match=re.escape(message)):
        distillation_loss(**arguments)
