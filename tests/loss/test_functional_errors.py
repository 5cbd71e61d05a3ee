"""Every bad input of distillation_loss: the message names the argument, what came and what was expected."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from closed_forms import make_codes, make_counts, make_logits, make_top_k

from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs, QuantizedLogits

STUDENT, TARGETS, CODES = (
    make_logits(5, 10, seed=0),
    make_logits(3, 5, 10, seed=1),
    make_codes(3, 5, 10, seed=1),
)
LABELS = torch.arange(5)
LOG_P = torch.log_softmax(TARGETS, -1)
TOP, COUNTS = make_top_k(5, 10, 3, seed=1), make_counts(5, 10, 8, seed=1)
NAN, INF = float("nan"), float("inf")
FLOATS = "float64, float32, bfloat16, float16"
NO_GRADIENT = "requires a gradient, and gradients flow to the student only"
HARD = {"labels": LABELS, "alpha": 0.5}


def scaled_row(p, row, factor):
    return torch.cat([p[:row], factor * p[row : row + 1], p[row + 1 :]])


def with_negative(p, row):
    """A row that still has the sum 1."""
    p = p.clone()
    p[row, 3] += p[row, 7] + 0.01
    p[row, 7] = -0.01
    return p


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
    # what no gradient flows to
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
    # what would have no effect
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


def test_the_good_arguments_are_good():
    """So that the cases above fail for what they change, and for nothing else."""
    for targets in (
        TARGETS,
        CODES,
        EnsembleLogits(TARGETS, torch.ones(3)),
        LogProbs(LOG_P),
        Probs(LOG_P.exp()),
    ):
        assert distillation_loss(STUDENT, targets).isfinite()
        assert distillation_loss(
            STUDENT, targets, LABELS, alpha=0.9, ignore_index=-1, weights=[0.0, 1.0, 2.0]
        ).isfinite()


def test_good_sparse_targets_are_good():
    for targets, tail in (*product((TOP, COUNTS), ("tail", "renormalize")), (TOP, "zero")):
        assert distillation_loss(STUDENT, targets, tail=tail).isfinite()
        assert (
            distillation_loss(
                STUDENT,
                targets,
                LABELS,
                tail=tail,
                alpha=0.5,
                class_weights=range(10),
                sample_weights=[0, 1, 2, 3, 4],
            )
            > 0
        )


def test_what_a_row_of_weight_0_of_a_sparse_target_holds_is_not_looked_at():
    ids, log_probs = TOP.ids.clone(), TOP.log_probs.clone()
    ids[2], log_probs[2] = 7, 5.0
    broken = replace(TOP, ids=ids, log_probs=log_probs)
    weights = [1, 1, 0, 1, 1]
    assert distillation_loss(STUDENT, broken, sample_weights=weights) == distillation_loss(
        STUDENT, TOP, sample_weights=weights
    )


def test_forgotten_class_dim_is_guessed_in_the_message():
    maps, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape("labels: expected [2, 3, 4]") + ".*pass class_dim=1"):
        distillation_loss(maps, maps, labels)
    assert distillation_loss(maps, maps, labels, class_dim=1) == 0


def test_nan_of_the_student_is_not_blamed_on_probabilities():
    assert distillation_loss(STUDENT * NAN, Probs(LOG_P.exp())).isnan()


@pytest.mark.parametrize(
    "made_at", [0.7, float(np.float32(0.7)), 0.7 * (1 + 9e-7), 0.7 * (1 + 2e-6), 0.7 * (1 - 2e-6)]
)
def test_temperatures_are_equal_up_to_a_float32s_rounding(made_at):
    """As a store in float32 gives it back."""
    target = LogProbs(torch.log_softmax(TARGETS / 0.7, -1), temperature=made_at)
    if abs(made_at - 0.7) <= 1e-6 * 0.7:
        assert distillation_loss(STUDENT, target, temperature=0.7) == distillation_loss(
            STUDENT, replace(target, temperature=0.7), temperature=0.7
        )
    else:
        with pytest.raises(ValueError, match=r"temperature: 0\.7, but targets"):
            distillation_loss(STUDENT, target, temperature=0.7)


def test_rows_of_log_probabilities_that_do_not_count_are_not_looked_at():
    log_p = LOG_P.clone()
    log_p[:, 2], log_p[1] = 5.0, 7.0
    assert distillation_loss(
        STUDENT, LogProbs(log_p), sample_weights=[1, 1, 0, 1, 1], weights=[1, 0, 1]
    ).isfinite()
    with pytest.raises(ValueError, match="in row 2 of member 0; of logits pass"):
        distillation_loss(STUDENT[:4], LogProbs(log_p[:, :4]), weights=[1, 0, 1])
    maps = torch.log_softmax(make_logits(2, 4, 10, 3, 3, seed=0), 2)  # classes in dimension 1, after K
    assert distillation_loss(torch.zeros(4, 10, 3, 3), LogProbs(maps), class_dim=1).isfinite()
    maps[1, 0, :, 0, 0] += 0.1
    with pytest.raises(ValueError, match=r"got 0\.1 in row 0 of member 1"):
        distillation_loss(torch.zeros(4, 10, 3, 3), LogProbs(maps), class_dim=1)


def test_bfloat16_log_probabilities_are_log_probabilities():
    """The worst case, in which every class is rounded the same way: 0.03 of a log-sum-exp."""
    log_p = torch.full((2, 50257), 1 / 50257).log()
    assert log_p.to(torch.bfloat16).double().logsumexp(-1).abs().max() > 0.01
    assert distillation_loss(torch.zeros(2, 50257), LogProbs(log_p.to(torch.bfloat16))).abs() <= 1e-6


def test_weights_that_require_a_gradient_are_legal_where_none_is_made():
    with torch.no_grad():
        assert distillation_loss(
            STUDENT, TARGETS, weights=torch.ones(3, requires_grad=True)
        ) == distillation_loss(STUDENT, TARGETS)


@pytest.mark.parametrize("temperature", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_numbers_of_any_kind_are_numbers(temperature):
    assert distillation_loss(STUDENT, TARGETS, temperature=temperature) == distillation_loss(
        STUDENT, TARGETS, temperature=2.0
    )


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
