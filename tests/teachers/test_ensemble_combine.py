"""Logits of other members or classes are refused by name."""

import numpy as np
import pytest
import torch

from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember


def ensemble(named=True):
    names = ["a", "b", "c"] if named else None
    return Ensemble.from_members(
        [ArrayMember(logits=np.eye(3), name=f"m{k}", classes=names) for k in range(2)]
    )


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 5, 3), (0, 5, 3), (5, 3), (2, 5), (2, 5, 4)])
@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_logits_of_another_shape_are_refused(shape, kind):
    for call in (ensemble().combine, ensemble().apply_temperatures):
        with pytest.raises(ValueError, match=r"logits: expected \[2, N, 3\], one for each member; got \["):
            call(kind(shape))


def test_logits_of_any_number_of_classes_are_taken_where_no_class_has_a_name():
    assert ensemble(named=False).combine(np.zeros((2, 5, 4))).shape == (5, 4)
    with pytest.raises(
        ValueError, match=r"logits: expected \[2, N, C\], one for each member; got \[3, 5, 4\]"
    ):
        ensemble(named=False).combine(np.zeros((3, 5, 4)))
    with torch.enable_grad():
        assert ensemble().combine(torch.zeros(2, 5, 3, requires_grad=True)).shape == (5, 3)
