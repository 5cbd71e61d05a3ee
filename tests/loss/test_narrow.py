"""Rows of few classes, which are computed side by side: types with and without a copy, rows that follow one
another in memory or don't."""

import pytest
import torch
from closed_forms import assert_close, make_codes, make_logits, run
from torch import Tensor

from ensdistill.loss.targets import QuantizedLogits

WIDTHS = (2, 3, 4, 5, 7, 8, 10, 31, 32, 33)
ROWS = 37  # two groups of 16, and some


def targets_of(dtype: torch.dtype, classes: int, apart: bool) -> Tensor | QuantizedLogits:
    if dtype == torch.uint8:
        codes = make_codes(2, ROWS, classes, seed=classes, masked=False)
        wide = torch.nn.functional.pad(codes.codes, (0, 3))[..., :classes]
        return QuantizedLogits(wide if apart else codes.codes, codes.scale, codes.offset)
    return make_logits(2, ROWS, classes + 3 * apart, seed=classes, dtype=dtype)[..., :classes]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_narrow_rows(dtype, apart):
    labels = torch.arange(ROWS) % 2
    labels[::5] = -100
    for classes in WIDTHS[apart::2] if apart else WIDTHS:
        student_dtype = torch.float32 if dtype == torch.uint8 else dtype
        student = make_logits(ROWS, classes + 3 * apart, seed=1, dtype=student_dtype)[..., :classes]
        targets = targets_of(dtype, classes, apart)
        arguments = {"labels": labels, "temperature": 2.0, "alpha": 0.7, "reduction": "none"}
        arguments["divergence"] = ("forward_kl", "jsd")[classes % 2]
        assert_close(run(student, targets, **arguments), student, targets, **arguments)
