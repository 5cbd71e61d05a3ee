"""Bad input of linear_distillation_loss: the message names the argument and the values."""

import re

import pytest
import torch

from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs

HIDDEN, WEIGHT = torch.zeros(5, 4), torch.zeros(10, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": [[0.0]]}, TypeError, "hidden: expected a Tensor [..., D]; got list"),
        (
            {"hidden": HIDDEN.long()},
            TypeError,
            "hidden: expected float64, float32, bfloat16, float16; got torch.int64",
        ),
        ({"hidden": torch.zeros(())}, ValueError, "hidden: expected [..., D]; got shape []"),
        (
            {"weight": WEIGHT.T},
            ValueError,
            "weight: expected [C, 4] with C >= 1, for hidden [5, 4]; got [4, 10]",
        ),
        (
            {"weight": WEIGHT[:0]},
            ValueError,
            "weight: expected [C, 4] with C >= 1, for hidden [5, 4]; got [0, 4]",
        ),
        (
            {"weight": WEIGHT.double()},
            TypeError,
            "weight: expected torch.float32 like hidden; got torch.float64",
        ),
        ({"bias": torch.zeros(4)}, ValueError, "bias: expected [10]; got shape [4]"),
        (
            {"bias": torch.zeros(10).half()},
            TypeError,
            "bias: expected torch.float32 like hidden; got torch.float16",
        ),
        ({"bias": 0.0}, TypeError, "bias: expected a Tensor [C]; got float"),
        *(
            ({"softcap": x}, ValueError, f"softcap: expected a finite number above 0; got {x!r}")
            for x in (0, -1.0, torch.inf, "30")
        ),
        *(
            ({"chunk_rows": x}, ValueError, f"chunk_rows: expected an int of at least 1; got {x!r}")
            for x in (0, -4, 2.5, True)
        ),
        (
            {"targets": torch.zeros(2, 4, 10)},
            ValueError,
            "targets: 4 rows, but the student has 5 rows (shapes [2, 4, 10] and [5, 10])",
        ),
        (
            {"targets": torch.zeros(2, 5, 9)},
            ValueError,
            "targets: 9 classes, but the student has 10 (shapes [2, 5, 9] and [5, 10])",
        ),
        (
            {"targets": EnsembleLogits(torch.zeros(5, 10))},
            ValueError,
            "targets: expected [K, 5, 10] with K >= 1",
        ),
        (
            {"targets": Probs(torch.full((5, 10), 0.2))},
            ValueError,
            "targets.probs: expected probabilities whose sum is 1",
        ),
        (
            {"labels": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            "labels: expected [5], one for each of the student's rows; got shape [4]",
        ),
        ({"alpha": 0.5}, ValueError, "labels: needed for alpha = 0.5"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight: on device meta, but the student is on cpu"),
        (
            {"hidden": HIDDEN.to_sparse()},
            TypeError,
            "hidden: expected a dense Tensor; got one of layout torch.sparse_coo",
        ),
        ({"statistics": 1}, TypeError, "statistics: expected a bool; got 1"),
        ({"recompute": None}, TypeError, "recompute: expected a bool; got None"),
        (
            {"label_smoothing": 0.1},
            ValueError,
            "label_smoothing: is of the hard labels' cross entropy, but labels is None",
        ),
        (
            {"sample_weights": torch.ones(5, requires_grad=True)},
            ValueError,
            "sample_weights: requires a gradient",
        ),
        (
            {"targets": LogProbs(torch.ones(5, 10))},
            ValueError,
            "targets.log_probs: expected log-probabilities whose log-sum-exp is 0",
        ),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "targets": torch.zeros(2, 5, 10), **changes}
    with pytest.raises(error, match=re.escape(message)):
        linear_distillation_loss(**arguments)
