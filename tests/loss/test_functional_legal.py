"""Arguments of distillation_loss that are unusual and legal."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from closed_forms import make_logits
from loss_calls import CODES, COUNTS, LABELS, LOG_P, NAN, STUDENT, TARGETS, TOP

from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs


def test_the_good_arguments_are_good():
    """So that the tests of bad calls fail for the one changed argument, and for nothing else."""
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


def test_a_row_of_weight_0_of_a_sparse_target_is_not_checked():
    ids, log_probs = TOP.ids.clone(), TOP.log_probs.clone()
    ids[2], log_probs[2] = 7, 5.0
    broken = replace(TOP, ids=ids, log_probs=log_probs)
    weights = [1, 1, 0, 1, 1]
    assert distillation_loss(STUDENT, broken, sample_weights=weights) == distillation_loss(
        STUDENT, TOP, sample_weights=weights
    )


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


def test_rows_of_log_probabilities_without_weight_are_not_checked():
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
