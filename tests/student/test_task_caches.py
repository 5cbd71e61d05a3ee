"""Students of several labels and of numbers, from caches on disk and from teachers that predict meanwhile."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Ensemble, StudentTrainer, TargetCache, cache_targets
from ensdistill.models import MLP
from ensdistill.student import CacheAsYouGo, OnlineTeachers
from ensdistill.teachers.members import TorchMember
from tests.student.task_sources import INPUTS, LABELS, MEASURED, NUMBERS, SHORT, TAGGED, X

OUTPUTS = {"multilabel": LABELS, "regression": 2 * NUMBERS}
ROWS = {"multilabel": TAGGED, "regression": MEASURED}
KINDS = {"multilabel": "logits", "regression": "mean_and_log_variance"}
TASKS = pytest.mark.parametrize("task", OUTPUTS)


def ensemble_of(task):
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        module = nn.Linear(INPUTS, OUTPUTS[task]).requires_grad_(False)
        if task == "regression":
            module.weight[:NUMBERS] *= 50
        members.append(TorchMember(module, name=f"m{seed}", task=task, output=KINDS[task]))
    names = [f"column {i}" for i in range(LABELS if task == "multilabel" else NUMBERS)]
    return Ensemble.from_members(members, weights=[0.7, 0.3], classes=names, task=task)


def student(task):
    return partial(MLP, INPUTS, [8], OUTPUTS[task])


def parameters(trained):
    network = trained.module if trained.units is None else trained.module.model
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@TASKS
def test_every_source_of_targets_trains_the_same_student(task, tmp_path):
    ensemble, rows, trainer = ensemble_of(task), ROWS[task], StudentTrainer(SHORT, alpha=0.8)
    cache = cache_targets(ensemble, rows, tmp_path / "cache", codec="fp32")
    expected = trainer.distill(student(task), rows, cache, seed=1)
    sources = [OnlineTeachers(ensemble), CacheAsYouGo(ensemble, tmp_path / "go", codec="fp32")]
    for source in sources:
        found = trainer.distill(student(task), rows, source, seed=1)
        torch.testing.assert_close(parameters(found), parameters(expected), rtol=0, atol=1e-5)
        assert found.task == task
    filled = TargetCache.open(tmp_path / "go")
    assert filled.task == task
    if task == "regression":
        np.testing.assert_array_equal(filled.location, cache.location)
        assert expected.module.location.tolist() == cache.location.tolist()


@TASKS
def test_a_validation_has_the_units_of_the_training(task):
    ensemble, rows = ensemble_of(task), ROWS[task]
    held, own = rows.take(np.arange(40)), rows.take(np.arange(40, 120))
    trained = StudentTrainer(SHORT).distill(student(task), own, OnlineTeachers(ensemble), validation=held)
    scores, z = trained.evaluations[-1].student, torch.from_numpy(X[:40])
    if task == "multilabel":
        p = torch.from_numpy(ensemble.predict_proba(X[:40]))
        same = (p > 0.5) == (trained.module(z) > 0)
        assert scores.agreement == pytest.approx(same.double().mean().item())
        return
    wanted = ensemble.predict_distribution(X[:40]).mean
    mean = trained.module(z)[0].detach().numpy()
    distance = np.square((mean - wanted) / trained.units.scale).mean()
    assert scores.distance == pytest.approx(distance, rel=1e-4)
    assert trained.choice.step == trained.evaluations[-1].step


@TASKS
def test_a_cache_of_the_mixture_serves_as_well(task, tmp_path):
    ensemble, rows, trainer = ensemble_of(task), ROWS[task], StudentTrainer(SHORT)
    whole = cache_targets(ensemble, rows, tmp_path / "members", codec="fp32")
    mixed = cache_targets(ensemble, rows, tmp_path / "mixture", codec="fp32", mixture_at=1.0)
    found = [trainer.distill(student(task), rows, cache, seed=2) for cache in (whole, mixed)]
    torch.testing.assert_close(*map(parameters, found), rtol=0, atol=1e-3)
    with pytest.raises(
        ValueError, match=r"member: 'm0' is not in the cache .*: it holds the members' mixture"
    ):
        trainer.distill(student(task), rows, mixed, member="m0")


@TASKS
def test_stored_codes_are_near_to_floats(task, tmp_path):
    ensemble, rows, trainer = ensemble_of(task), ROWS[task], StudentTrainer(SHORT)
    codec = "uint8" if task == "multilabel" else "affine16"
    caches = [cache_targets(ensemble, rows, tmp_path / name, codec=name) for name in ("fp32", codec)]
    found = [trainer.distill(student(task), rows, cache, seed=2) for cache in caches]
    torch.testing.assert_close(*map(parameters, found), rtol=0, atol=0.02)
    assert not torch.equal(*map(parameters, found))


def test_labels_in_the_topk_form(tmp_path):
    ensemble = ensemble_of("multilabel")
    cache = cache_targets(ensemble, TAGGED, tmp_path / "top", codec=f"topk-{LABELS}", mixture_at=1.0)
    exact = cache_targets(ensemble, TAGGED, tmp_path / "whole", codec="fp32")
    trainer = StudentTrainer(SHORT)
    found = [
        trainer.distill(student("multilabel"), TAGGED, one, seed=2, validation=0.2) for one in (cache, exact)
    ]
    torch.testing.assert_close(*map(parameters, found), rtol=0, atol=0.02)
    one, two = (trained.evaluations[-1].student for trained in found)
    assert one.agreement == pytest.approx(two.agreement, abs=0.02)
