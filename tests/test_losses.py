"""DistillationLoss is distillation_loss with its settings fixed."""

import inspect
from typing import Any

import pytest
import torch
from closed_forms import make_logits, make_top_k

from ensdistill.functional import RowStatistics, distillation_loss
from ensdistill.losses import DistillationLoss

STUDENT, TARGETS, LABELS = make_logits(5, 10, seed=0), make_logits(3, 5, 10, seed=1), torch.arange(5)
SETTINGS: dict[str, Any] = {
    "temperature": 2.0,
    "alpha": 0.3,
    "weights": [1.0, 2.0, 0.0],
    "combiner": "log_prob",
    "divergence": "jsd",
    "beta": 0.2,
    "tail": "zero",
    "ignore_index": 3,
    "label_smoothing": 0.2,
    "class_weights": torch.linspace(0, 3, 10),
    "z_loss": 0.1,
    "reduction": "none",
    "class_dim": 0,
    "recompute": True,
    "statistics": True,
    "impl": "reference",
}


def test_every_setting_of_the_function_is_one_of_the_module():
    function, module = (inspect.signature(x).parameters for x in (distillation_loss, DistillationLoss))
    assert {n: p.default for n, p in function.items() if p.kind is p.KEYWORD_ONLY and n != "sample_weights"} == {
        n: p.default for n, p in module.items()
    }
    assert set(SETTINGS) == set(module)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_reaches_the_function(name, monkeypatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr("ensdistill.losses.distillation_loss", lambda *_, **settings: seen.update(settings))
    DistillationLoss(**{name: SETTINGS[name]})(STUDENT, TARGETS, LABELS)
    assert seen[name] is SETTINGS[name] or seen[name] == SETTINGS[name]
    defaults = inspect.signature(distillation_loss).parameters
    assert {n: v for n, v in seen.items() if n != name} == {n: defaults[n].default for n in seen if n != name}


def test_values():
    settings = {n: SETTINGS[n] for n in ("temperature", "alpha", "weights", "divergence", "class_weights", "z_loss")}
    rows = torch.linspace(0, 2, 5)
    expected = distillation_loss(STUDENT, TARGETS, LABELS, sample_weights=rows, **settings)
    assert torch.equal(DistillationLoss(**settings)(STUDENT, TARGETS, LABELS, rows), expected)
    loss, statistics = DistillationLoss(statistics=True, tail="renormalize")(STUDENT, make_top_k(5, 10, 3, seed=1))
    assert isinstance(statistics, RowStatistics)
    assert loss == distillation_loss(STUDENT, make_top_k(5, 10, 3, seed=1), tail="renormalize")


def test_class_weights_move_with_the_module_and_are_not_saved():
    module = DistillationLoss(class_weights=[1.0, 2.0])
    assert module.to("meta").class_weights.device.type == "meta"
    assert not module.state_dict()
