"""Callbacks, the log of a training, and trackers."""

from __future__ import annotations

import io
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from rich.console import Console
from small_student import ROWS, STUDENT, small_cache

from ensdistill import Optimization, StudentTrainer
from ensdistill.student import Callback, LiveView, Validation

STEPS = 150
QUICK = Optimization(steps=STEPS, batch_size=24, learning_rate=0.05, schedule="cosine")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return small_cache(tmp_path_factory.mktemp("callbacks"))


class Seen(Callback):
    """Notes what each hook sees."""

    def __init__(self, stop_at=None, hook="step"):
        self.calls, self.stop_at, self.hook = [], stop_at, hook

    def note(self, name, state):
        self.calls.append((name, state.step, state.loss, state.learning_rate))
        if name == self.hook and self.stop_at is not None and state.step >= self.stop_at:
            state.stop("seen enough")

    def on_start(self, state):
        self.note("start", state)
        assert (state.steps, state.rank) == (STEPS, 0)

    def on_step(self, state):
        self.note("step", state)
        assert state.module.training

    def on_evaluation(self, state):
        self.note("evaluation", state)
        assert state.evaluation.step == state.step
        assert state.choice is not None

    def on_checkpoint(self, state):
        self.note("checkpoint", state)
        assert state.checkpoint.exists()

    def on_end(self, state):
        self.note("end", state)
        self.last = {name: value.clone() for name, value in state.module.state_dict().items()}
        self.reason, self.choice = state.reason, state.choice


def steps_of(seen, name):
    return [step for call, step, *_ in seen.calls if call == name]


def same(one, other):
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, total):
        if done >= step:
            raise Stop

    return progress


def test_each_hook_is_called_with_the_state_and_changes_nothing(cache, tmp_path):
    seen = Seen()
    trained = StudentTrainer(QUICK, callbacks=[seen]).distill(
        STUDENT, ROWS, cache, validation=Validation(rows=0.2, every=64), folder=tmp_path, checkpoint_every=32
    )
    plain = StudentTrainer(QUICK).distill(STUDENT, ROWS, cache, validation=Validation(rows=0.2, every=64))
    assert same(trained, plain)
    assert seen.calls[0][:2] == ("start", 0)
    assert np.isnan(seen.calls[0][2])
    assert steps_of(seen, "step") == list(range(1, STEPS + 1))
    assert steps_of(seen, "evaluation") == [64, 128, 150]
    assert steps_of(seen, "checkpoint") == [32, 64, 96, 128]
    assert steps_of(seen, "end") == [150]
    assert seen.reason == ""
    assert seen.choice == trained.choice
    for name, value in trained.module.state_dict().items():
        assert torch.equal(seen.last[name], value)
    # The losses are those of the curve, the rates those of the schedule.
    losses = [loss for name, _, loss, _ in seen.calls if name == "step"]
    assert np.mean(losses[:16]) == pytest.approx(trained.losses[0], rel=1e-6)
    rates = [rate for name, _, _, rate in seen.calls if name == "step"]
    model = STUDENT()
    optimizer, schedule = QUICK.build(model.parameters())
    for rate in rates[:-1]:
        optimizer.step()
        schedule.step()
        assert rate == schedule.get_last_lr()[0]


@pytest.mark.parametrize(("hook", "end"), [("step", 64), ("evaluation", 96), ("checkpoint", 64)])
def test_a_callback_ends_the_training_after_its_block(cache, tmp_path, hook, end):
    seen, done = Seen(stop_at=40, hook=hook), []
    trained = StudentTrainer(QUICK, callbacks=[seen]).distill(
        STUDENT,
        ROWS,
        cache,
        validation=Validation(rows=0.2, every=90),
        folder=tmp_path,
        checkpoint_every=64,
        progress=lambda step, total: done.append((step, total)),
    )
    assert (done[-1], seen.reason) == ((end, end), "seen enough")
    assert steps_of(seen, "end") == [end]
    assert trained.steps[-1] == end
    assert [e.step for e in trained.evaluations] == [end]  # the end of a training is always evaluated


def terminal(width=160):
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def text_of(console):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_the_live_view_shows_steps_rate_time_left_loss_and_scores(cache, monkeypatch):
    monkeypatch.setattr("ensdistill.student.live.EVERY", 0.0)
    console, seen = terminal(), Seen()
    trained = StudentTrainer(QUICK, callbacks=[seen, LiveView(console)]).distill(
        STUDENT, ROWS, cache, validation=Validation(rows=0.2, every=64)
    )
    shown, scores = text_of(console), trained.evaluations[-1].student
    number = r"[\d,.]+"
    bar = rf"student [━╸╺]+ 150/150 {number} steps/s \d:\d\d:\d\d loss {number} · kl {number} · agreement {number}%"
    assert re.search(bar, shown), shown
    assert f"kl {scores.kl:.4g} · agreement {scores.agreement:.1%}" in shown
    assert f"loss {seen.calls[-1][2]:.4g}" in shown
    assert f"student: {trained.choice}" in shown


def test_the_live_view_is_silent_without_a_terminal_and_ends_with_a_failure(cache):
    silent = Console(file=io.StringIO())
    StudentTrainer(QUICK, callbacks=[LiveView(silent)]).distill(STUDENT, ROWS, cache)
    assert silent.file.getvalue() == ""
    view = LiveView(terminal())
    with pytest.raises(Stop):
        StudentTrainer(QUICK, callbacks=[view]).distill(STUDENT, ROWS, cache, progress=stop_at(64))
    assert view._bars is None
    assert "\x1b[?25h" in view.console.file.getvalue()  # the cursor is back


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_time(log):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log if "resumed" not in line]


def there(scores):
    """The scores that a classification has."""
    return {name: value for name, value in vars(scores).items() if value is not None}


def test_the_log_of_a_killed_training_is_that_of_a_whole_one(cache, tmp_path):
    train = partial(
        StudentTrainer(QUICK, ema=0.9).distill,
        STUDENT,
        ROWS,
        cache,
        validation=Validation(rows=0.2, every=64),
    )
    whole = train(folder=tmp_path / "whole", checkpoint_every=64)
    log = lines(tmp_path / "whole")
    assert log[0]["settings"]["optimization.learning_rate"] == 0.05
    blocks = [line for line in log if "loss" in line]
    assert [line["step"] for line in blocks] == [32, 64, 96, 128, 150]
    assert [line["step"] for line in log if "checkpoint" in line] == [64, 128]
    scores = [line["evaluation"] for line in log if "evaluation" in line]
    assert scores == [{"student": there(e.student), "average": there(e.average)} for e in whole.evaluations]
    assert (log[-1]["end"], log[-1]["choice"]) == ("all steps are done", whole.record()["choice"])

    with pytest.raises(Stop):
        train(folder=tmp_path / "killed", checkpoint_every=64, progress=stop_at(96))
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 128, "lo')
    train(folder=tmp_path / "killed", checkpoint_every=64)
    assert without_time(lines(tmp_path / "killed")) == without_time(log)
    assert [line["step"] for line in lines(tmp_path / "killed") if "resumed" in line] == [64]
    # A training that starts anew in the same folder has a log of its own.
    for file in (tmp_path / "killed").glob("*.safetensors"):
        file.unlink()
    train(folder=tmp_path / "killed", checkpoint_every=64)
    assert len(lines(tmp_path / "killed")) == len(log)


class Tracker(GeneralTracker):
    """Keeps what it is given, through accelerate's own base class."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.events = []

    @property
    def tracker(self):
        return self.events

    def start(self):
        self.events.append("start")

    def store_init_configuration(self, values):
        assert all(isinstance(v, bool | int | float | str) for v in values.values())
        self.events.append(("settings", values["optimization.steps"]))

    def log(self, values, step=None, **kwargs):
        assert PartialState().is_main_process
        assert all(isinstance(v, float) for v in values.values())
        self.events.append((step, values))

    def finish(self):
        self.events.append("finish")


def test_trackers_of_accelerate_receive_losses_and_scores(cache, tmp_path):
    tracker = Tracker()
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    trained = StudentTrainer(QUICK, trackers=[tracker], ema=0.9).distill(
        STUDENT, ROWS, cache, validation=Validation(rows=0.2, every=64), folder=tmp_path
    )
    assert mine.mixed_precision == "bf16"  # the caller's state of accelerate is left alone
    assert tracker.events[:2] == ["start", ("settings", STEPS)]
    assert tracker.events[-1] == "finish"
    logged = tracker.events[2:-1]
    blocks = [
        (line["step"], line["loss"], line["learning_rate"]) for line in lines(tmp_path) if "loss" in line
    ]
    assert [(s, v["loss"], v["learning_rate"]) for s, v in logged if "loss" in v] == blocks
    assert [(s, v["student/kl"], v["average/accuracy"]) for s, v in logged if "student/kl" in v] == [
        (e.step, e.student.kl, e.average.accuracy) for e in trained.evaluations
    ]


def test_trackers_finish_where_a_training_fails_and_leave_no_state(cache, monkeypatch):
    monkeypatch.setattr(PartialState, "_shared_state", {})
    tracker = Tracker()
    trainer = StudentTrainer(QUICK, trackers=[tracker])
    with pytest.raises(Stop):
        trainer.distill(STUDENT, ROWS, cache, progress=stop_at(64))
    assert tracker.events[-1] == "finish"
    assert PartialState._shared_state == {}


def test_trackers_that_cannot_be_used_are_refused(monkeypatch):
    monkeypatch.setattr("ensdistill.student.trackers.get_available_trackers", lambda: ["mlflow"])
    with pytest.raises(
        ValueError, match=r"'wandb' needs a package that is not installed: pip install wandb$"
    ):
        StudentTrainer(QUICK, trackers=["mlflow", "wandb"])
    with pytest.raises(ValueError, match=r"^trackers: expected one of aim, .*wandb; got 'wandbee'"):
        StudentTrainer(QUICK, trackers=["wandbee"])
    with pytest.raises(TypeError, match=r"^trackers: expected a list of them; got 'wandb'"):
        StudentTrainer(QUICK, trackers="wandb")
    with pytest.raises(TypeError, match=r"^trackers: expected names or instances .*; got int"):
        StudentTrainer(QUICK, trackers=[3])


class Misspelt(Callback):
    def on_epoch(self, state):
        pass


@pytest.mark.parametrize(
    ("callbacks", "error", "message"),
    [
        (Seen(), TypeError, "^callbacks: expected a list of them; got Seen"),
        ([Seen], TypeError, "^callbacks: expected instances of .*Callback; got the class Seen"),
        ([print], TypeError, "^callbacks: expected instances of .*Callback; got builtin_function_or_method"),
        ([Misspelt()], ValueError, r"^callbacks: Misspelt.on_epoch is no hook; there are on_start, on_step"),
    ],
    ids=["no list", "a class", "a function", "misspelt"],
)
def test_callbacks_that_would_not_be_called_are_refused(callbacks, error, message):
    with pytest.raises(error, match=message):
        StudentTrainer(QUICK, callbacks=callbacks)


def test_callbacks_and_trackers_are_no_part_of_a_checkpoint(cache, tmp_path):
    class Own(StudentTrainer):
        pass

    begin = Own(QUICK, callbacks=[Seen()], trackers=[Tracker()])
    with pytest.raises(Stop):
        begin.distill(STUDENT, ROWS, cache, folder=tmp_path, checkpoint_every=32, progress=stop_at(64))
    seen = Seen()
    resumed = Own(QUICK, callbacks=[seen]).distill(STUDENT, ROWS, cache, folder=tmp_path)
    assert seen.calls[0][:2] == ("start", 64)
    assert same(resumed, StudentTrainer(QUICK).distill(STUDENT, ROWS, cache))
