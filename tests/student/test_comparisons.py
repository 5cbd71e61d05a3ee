"""Comparisons of a student's outputs with targets and labels."""

from __future__ import annotations

import pytest
import torch

from ensdistill.loss.settings import LossSettings
from ensdistill.loss.targets import EnsembleLogits, Probs
from ensdistill.student.comparisons import NAMES, Comparison, present

SETTINGS = LossSettings(reduction="none")


@pytest.mark.parametrize("members", [1, 3])
def test_probabilities_of_labels_are_compared_as_their_log_odds_are(members):
    torch.manual_seed(members)
    odds, outputs = torch.randn(members, 8, 5), torch.randn(8, 5)
    weights = torch.arange(1.0, members + 1)
    labels = torch.full((8, 5), -1)
    by = Comparison("multilabel", SETTINGS, weights)
    expected = by(outputs, EnsembleLogits(odds, weights), labels)
    found = by(outputs, Probs(odds.sigmoid(), weights), labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found[NAMES.index("agreement"), 1] == 40


def test_one_distribution_of_labels_needs_no_dimension_of_members():
    p = torch.rand(4, 3)
    torch.testing.assert_close(present(Probs(p), SETTINGS), p)
    torch.testing.assert_close(present(EnsembleLogits(p.logit()), SETTINGS), p)
