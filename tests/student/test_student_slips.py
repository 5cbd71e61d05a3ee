"""Slips in the trainer's arguments: each is named before anything is trained."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from ensdistill import Optimization, Rows, StudentOptimization, StudentTrainer
from ensdistill.common.optimizers import build_optimizer
from ensdistill.models import MLP
from ensdistill.student import distill_many

INPUTS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
ROWS = Rows(INPUTS, np.arange(40), np.arange(40) % 3)
FACTORY = partial(MLP, 4, [8], 3)


def trained(factory=FACTORY, rows=ROWS, trainer=StudentTrainer, **more):
    return trainer(Optimization(steps=3, batch_size=8)).direct(factory, rows, classes=3, **more)


def test_arrays_in_place_of_rows():
    with pytest.raises(
        TypeError, match=r"^rows: expected Rows, such as Rows\(inputs, uids, labels\); got tuple"
    ):
        trained(rows=(INPUTS, np.arange(40)))


def test_a_dict_in_place_of_an_optimization():
    with pytest.raises(TypeError, match=r"^optimization: expected an Optimization .*; got {'steps': 3}"):
        StudentTrainer({"steps": 3})


@pytest.mark.parametrize("seeds", [4, "abcd", [0.5]])
def test_seeds_that_are_no_integers(seeds):
    with pytest.raises(TypeError, match=r"^seeds: expected integers, one for each student; got "):
        distill_many(StudentTrainer(), FACTORY, ROWS, None, seeds=seeds)


def test_a_schedule_by_its_import_path():
    with pytest.raises(
        ValueError, match=r"got 'torch.optim.Some': pass the class itself, such as .* to a Student"
    ):
        StudentOptimization(schedule="torch.optim.Some")
    with pytest.raises(ValueError, match=r"expected one_cycle, cosine or constant; got 'cosin'$"):
        Optimization(schedule="cosin")


def test_a_module_of_several_outputs():
    class Pair(nn.Module):
        def __init__(self, *shapes):
            super().__init__()
            self.layer, self.shapes = nn.Linear(4, 3), shapes

        def forward(self, x):
            return tuple(self.layer(x).new_zeros(len(x), *shape) for shape in self.shapes)

    for shapes, found in (
        (((3,), (3,)), r"2 tensors that could be logits \(at 0 \[2, 3\], at 1 \[2, 3\]\)"),
        (((3, 1), (3, 1)), r"no tensors that could be logits \(at 0 \[2, 3, 1\], at 1 \[2, 3, 1\]\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"tuple with {found}: return the logits alone, or a dict in which"
        ):
            trained(partial(Pair, *shapes))


def test_warnings_name_the_line_that_trains():
    def student():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    trainer = StudentTrainer(StudentOptimization(steps=1, batch_size=8, accumulate=2))
    with pytest.warns(UserWarning, match=r"^BatchNorm \(1\) takes mean") as warned:
        trainer.direct(student, ROWS, classes=3)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("every", [0, -5, 1.5, "10"])
def test_steps_between_checkpoints(every, tmp_path):
    with pytest.raises(
        ValueError, match=r"^checkpoint_every: expected an integer of at least 1, in steps; got "
    ):
        trained(checkpoint=tmp_path / "file", checkpoint_every=every)


def test_a_student_that_is_frozen():
    with pytest.raises(
        ValueError, match=r"^factory: MLP has no parameter that can be trained: .*requires_grad_"
    ):
        trained(lambda: FACTORY().requires_grad_(False))


def test_a_step_that_returns_logits_is_named():
    class Mine(StudentTrainer):
        def training_step(self, model, batch, loss):
            return model(batch.inputs)

    with pytest.raises(
        TypeError, match=r"^loss: expected .*Mine.training_step to return .*; got torch.float32 \[8, 3\]"
    ):
        trained(trainer=Mine)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_named_by_its_value(value):
    inputs = INPUTS.copy()
    inputs[7, 2] = value

    class Late(nn.Module):
        """Such rows, which were in order at the first look."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(FloatingPointError, match=rf"uid 7 holds a value of {value};"):
        StudentTrainer(Optimization(steps=60, batch_size=40)).direct(
            Late, Rows(inputs, np.arange(40), np.arange(40) % 3), classes=3
        )


def test_one_cycle_by_class_takes_the_rate_and_the_steps_of_the_settings():
    model = nn.Linear(2, 2)
    by_name, by_class = (
        build_optimizer(
            StudentOptimization(
                steps=50, learning_rate=0.1, warmup=0.3 if one == "one_cycle" else 0.0, schedule=one
            ),
            model,
        )
        for one in ("one_cycle", partial(OneCycleLR, pct_start=0.3))
    )
    for _ in range(50):
        rates = []
        for optimizer, scheduler in (by_name, by_class):
            rates.append(optimizer.param_groups[0]["lr"])
            model.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            scheduler.step()
        assert rates[0] == pytest.approx(rates[1])


def test_one_cycle_of_too_few_steps():
    settings = StudentOptimization(
        learning_rate=0.01, steps=50, schedule=partial(OneCycleLR, max_lr=0.1, total_steps=20), warmup=0.0
    )
    with pytest.raises(
        ValueError, match=r"^optimization.schedule: OneCycleLR: total_steps: expected at least 50"
    ):
        build_optimizer(settings, nn.Linear(2, 2))
