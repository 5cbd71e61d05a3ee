"""The student's trainer beside a caller's own accelerate, and the contents of a checkpoint."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.common.processes import Processes
from ensdistill.data import Rows
from ensdistill.job.config import DistillConfig
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import MLP
from ensdistill.student.engine import start_engine
from ensdistill.student.trainer import StudentTrainer

ROWS = Rows(
    np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32), np.arange(64), np.arange(64) % 2
)
train = partial(
    StudentTrainer(Optimization(steps=70, batch_size=16)).direct, partial(MLP, 8, [4], 2), ROWS, classes=2
)


@pytest.fixture(autouse=True)
def no_state():
    """accelerate as in a new process, before and after."""

    def reset():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    reset()
    yield
    reset()


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True)
    )


def test_an_accelerator_that_was_there_before():
    undisturbed = train()
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    model, optimizer = nn.Linear(8, 2), torch.optim.SGD
    model, optimizer = mine.prepare(model, optimizer(model.parameters(), lr=0.1))
    before = {owner: dict(owner._shared_state) for owner in (AcceleratorState, PartialState)}

    def progress(done, total):  # the caller's, not the trainer's, in the middle of it, too
        assert AcceleratorState().mixed_precision == "bf16"
        assert not GradientState().sync_gradients

    with mine.accumulate(model):
        assert not mine.sync_gradients
        beside = train(progress=progress)
    assert same(beside, undisturbed)
    assert {owner: dict(owner._shared_state) for owner in before} == before
    assert (mine.mixed_precision, AcceleratorState().mixed_precision) == ("bf16", "bf16")
    for _ in range(4):  # its accumulation goes on where it was
        with mine.accumulate(model):
            mine.backward(model(torch.ones(1, 8)).sum())
            optimizer.step()
    assert mine.step == 5


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_accelerator_that_comes_after(precision):
    trainer = StudentTrainer(Optimization(steps=3), mixed_precision=precision)
    student = trainer.direct(lambda: nn.Linear(8, 2), ROWS, classes=2).module
    assert (AcceleratorState._shared_state, PartialState._shared_state, GradientState._shared_state) == (
        {},
        {},
        {},
    )
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("bf16", 2)
    # It prepares the student as any other module.
    assert vars(student).keys() == vars(nn.Linear(8, 2)).keys()
    assert mine.prepare(student).forward.__func__ is not nn.Linear.forward


def test_settings_of_a_launcher_for_the_callers_training(monkeypatch):
    expected, count = train(), torch.get_num_threads()
    settings = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "LOCAL_RANK": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert same(train(), expected)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == count
    assert not torch.distributed.is_initialized()


def test_the_callers_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 the global one is meant
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    train()
    assert torch.equal(torch.rand(2), expected[0])
    np.testing.assert_array_equal(np.random.rand(2), expected[1])  # noqa: NPY002


class Remembers(nn.Module):
    """Changes its outputs by two buffers that are put in anew: one of ``state_dict()``, one that it leaves
    out."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def forward(self, x):
        x = self.linear(x)
        if self.training:
            self.seen = 0.9 * self.seen + x.detach().mean(0)
            self.hidden = 0.9 * self.hidden + x.detach().std(0)
        return x * (1 + self.hidden) + self.seen


def test_buffers_are_resumed(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    trainer = StudentTrainer(Optimization(steps=100, batch_size=16, learning_rate=0.05))
    undisturbed = trainer.direct(Remembers, ROWS, classes=2)
    with pytest.raises(Stop):
        trainer.direct(
            Remembers, ROWS, classes=2, checkpoint=tmp_path / "c", checkpoint_every=32, progress=stop
        )
    steps = []
    resumed = trainer.direct(
        Remembers, ROWS, classes=2, checkpoint=tmp_path / "c", progress=lambda done, _: steps.append(done)
    )
    assert steps == [64, 96, 100]
    assert same(resumed, undisturbed)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.module.buffers(), undisturbed.module.buffers(), strict=True)
    )


def test_state_that_a_checkpoint_can_not_hold(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(
        ValueError, match=r"^checkpoint: 0 \(Extra\) keeps state that is no tensor \(get_extra_state\)"
    ):
        StudentTrainer(Optimization(steps=2)).direct(
            lambda: nn.Sequential(Extra(8, 2)), ROWS, classes=2, checkpoint=tmp_path / "c"
        )


def test_half_precision_without_a_gpu():
    called = []
    with pytest.raises(
        ValueError,
        match=r"^mixed_precision: fp16 needs a GPU, .* training is on the CPU: choose 'no' or 'bf16'",
    ):
        StudentTrainer(mixed_precision="fp16").direct(lambda: called.append(1), ROWS, classes=2)
    assert not called
    student = StudentConfig(partial(MLP), Optimization())
    with pytest.raises(
        ValueError, match=r"^distill\.mixed_precision: fp16 needs a GPU, but a job trains on the CPU"
    ):
        DistillConfig({"small": student}, mixed_precision="fp16")


def test_a_single_process_exchanges_nothing():
    alone, numbers = Processes(), torch.ones(2)
    assert alone.mean(numbers) is numbers
    assert (alone.first(b"a"), alone.first(None), alone.agree(b"a")) == (b"a", None, True)


class Scaling:
    """What the engine uses of accelerate where gradients are scaled, on the CPU."""

    def __init__(self, optimizer, scale):
        Accelerator(cpu=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
        self.prepared = AcceleratedOptimizer(optimizer, scaler=self.scaler)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    @property
    def optimizer_step_was_skipped(self):
        return self.prepared.step_was_skipped


@pytest.mark.parametrize("clip", [None, 0.1])
def test_scaled_gradients_are_clipped_by_their_true_norm_after_all_parts(clip):
    def steps(scale):
        torch.manual_seed(0)
        model = nn.Linear(8, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        engine = start_engine(model, optimizer, "no", Processes(), clip_norm=clip)
        if scale:
            scaling = Scaling(optimizer, scale)
            engine = replace(engine, _accelerator=scaling, _prepared=scaling.prepared)
        done = []
        for step in range(4):
            optimizer.zero_grad()
            for part in torch.from_numpy(ROWS.inputs).view(4, 16, 8):
                # The third step's gradients are finite, but overflow once they are scaled.
                huge = 1e36 if step == 2 and scale else 1.0
                engine.backward(engine.forward(part).square().mean() * huge / 4)
            if step != 2 or scale:
                done.append(engine.step())
        return done, model

    (done, plain), (scaled_done, scaled) = steps(None), steps(2.0**16)
    assert done == [True, True, True]
    assert scaled_done == [True, True, False, True]
    for got, want in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
