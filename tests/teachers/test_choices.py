"""Choices of a search that diverge are none."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ensdistill.teachers.choices import FILE, Choices
from ensdistill.teachers.members.moments import Moments

NUMBERS = np.random.default_rng(0).normal(size=(20, 1))
GOOD = Moments(np.zeros((20, 1)), np.ones((20, 1)))


def overflown() -> Moments:
    """Variances of a network without bounds."""
    with np.errstate(under="raise"):
        return Moments(GOOD.mean, np.exp(np.where(np.arange(20) == 3, 800.0, 0.0))[:, None])


def raised() -> Moments:
    raise FloatingPointError("it diverged")


@pytest.mark.parametrize(
    "made",
    [
        overflown,
        raised,
        lambda: Moments(GOOD.mean * np.nan, None),
        lambda: Moments(GOOD.mean + 1e200, GOOD.variance),
    ],
)
def test_a_choice_that_diverges_is_none_and_is_written_down(made, tmp_path: Path) -> None:
    choices = Choices(NUMBERS, tmp_path, "inputs")
    assert choices.nll("wild", made) == math.inf
    assert choices.nll("calm", lambda: GOOD) < 3
    assert json.loads((tmp_path / FILE).read_text())["tried"]["wild"]["nll"] is None
    again = Choices(NUMBERS, tmp_path, "inputs")
    assert again.nll("wild", raised) == math.inf
    assert again.record("calm")["held_out_nll"] == {
        "wild": None,
        "calm": pytest.approx(choices.nll("calm", raised)),
    }
