"""A job's students with callbacks and trackers from YAML, and the folder of their training."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from job_helpers import fingerprints, run, stamps, succeed, write_job
from sklearn.linear_model import LogisticRegression

from ensdistill.cli.settings import load_config
from ensdistill.common.optimization import Optimization
from ensdistill.job.run_folder import RunFolder, keep
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import MLP
from ensdistill.student import LiveView, StudentTrainer

SMALL = "distill.students.small"
CALLBACKS = """
from ensdistill.student import Callback

class Counts(Callback):
    only_watches = True
    started = []
    def __init__(self, step=0):
        self.steps = step
    def on_step(self, state):
        self.steps += 1
    def on_end(self, state):
        Counts.started.append(self.steps)

class Stops(Callback):
    def __init__(self, after=1):
        self.after = after
    def on_step(self, state):
        if state.step >= self.after:
            state.stop("long enough")

class Lies(Counts):
    def on_end(self, state):
        state.stop("no matter what it promised")
"""


class Kept(GeneralTracker):
    """A tracker that keeps what it gets, for all trainings of this process."""

    name, requires_logging_directory = "kept", False
    runs: ClassVar[list[list[dict]]] = []

    def __init__(self, run_name="", **_):
        super().__init__()

    @property
    def tracker(self):
        return self.runs

    def start(self):
        self.runs.append([])

    def log(self, values, step=None, **_):
        self.runs[-1].append({"step": step, **values})


@pytest.fixture
def own(module_of, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(Kept, "runs", [])
    return module_of(CALLBACKS, "watchers")


def unfinished(folder):
    found = RunFolder(load_config(["--config", str(folder.parents[1] / "job.yaml")]))
    return {str(unit) for unit in found.units("report") if not found.is_finished(unit)}


def log_of(folder, kind="distill/small/student"):
    file = folder / "seed-0" / kind / "training" / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_trained_student_has_a_log_and_no_checkpoint(finished_job):
    for kind in ("distill/small/student", "distill/wide/distilled_from_best_member", "direct/small/direct"):
        log = log_of(finished_job, kind)
        assert [line["step"] for line in log] == [0, 30, 30]
        assert log[-1]["end"] == "all steps are done"
        assert list((finished_job / "seed-0" / kind / "training").glob("*.safetensors")) == []


def test_a_finished_student_does_not_depend_on_its_log(copy):
    shutil.rmtree(copy / "seed-0" / "distill" / "small" / "student" / "training")
    (copy / "seed-0" / "direct" / "small" / "direct" / "training" / "log.jsonl").write_text("")
    assert unfinished(copy) == set()


def test_callbacks_and_trackers_from_yaml_watch_the_student_and_its_baselines(own, copy):
    watching = [{"class_path": "watchers.Counts", "init_args": {"step": 100}}]
    change = {f"{SMALL}.callbacks": watching, f"{SMALL}.trackers": ["kept"], f"{SMALL}.checkpoint_every": 32}
    file = write_job(copy.parents[1], change)
    assert unfinished(copy) == set()  # none of them changes a student
    before = stamps(copy)
    succeed("distill", file)
    assert stamps(copy) | {"run.yaml": None} == before | {"run.yaml": None}

    for stage in ("distill", "direct"):
        shutil.rmtree(copy / "seed-0" / stage / "small")
    succeed("distill", file)
    assert own.Counts.started == [130] * 4  # each training has a copy of the callback
    assert len(Kept.runs) == 4
    assert all(one[-1]["step"] == 30 and "loss" in one[-1] for one in Kept.runs)
    after = stamps(copy)
    same = [n for n in after if n.endswith(".safetensors")]
    assert [after[n][1] for n in same] == [before[n][1] for n in same]


def test_a_callback_that_may_stop_makes_its_student_anew_and_spares_the_baselines(own, copy):
    before = fingerprints(copy)
    stopping = [{"class_path": "watchers.Stops", "init_args": {"after": 3}}]
    steps = {"distill.students.small.optimization.steps": 40}
    file = write_job(copy.parents[1], {f"{SMALL}.callbacks": stopping})
    assert unfinished(copy) == {"seed 0 · distill small"}
    succeed("distill", file)
    after = fingerprints(copy)
    assert {name for name in after if after[name] != before[name]} == {"seed-0/distill/small"}
    assert unfinished(copy) == set()
    succeed("distill", write_job(copy.parents[1], {f"{SMALL}.callbacks": stopping, **steps}))
    assert [line.get("end") for line in log_of(copy)][-1] == "long enough"
    assert log_of(copy)[-1]["step"] == 32
    assert log_of(copy, "direct/small/direct")[-1]["end"] == "all steps are done"
    # Other arguments of the callback are another student.
    stopping[0]["init_args"]["after"] = 4
    write_job(copy.parents[1], {f"{SMALL}.callbacks": stopping, **steps})
    assert unfinished(copy) == {"seed 0 · distill small"}


def test_a_callback_that_only_watches_may_not_stop(own, copy):
    shutil.rmtree(copy / "seed-0" / "distill" / "small")
    file = write_job(copy.parents[1], {f"{SMALL}.callbacks": [{"class_path": "watchers.Lies"}]})
    status, _, err = run("distill", file)
    assert status == 1
    assert "Lies.on_end stopped the training (no matter what it promised), but Lies sets" in " ".join(
        err.split()
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"trackers": ["kepd"]}, r"trackers: expected one of .*wandb; got 'kepd'"),
        ({"callbacks": ["torch.nn.Linear"]}, r"callbacks\.0: torch\.nn\.Linear is no Callback"),
        ({"keep_last": 0}, r"keep_last: expected an integer of at least 1; got 0"),
        ({"checkpoint_every": 0}, r"checkpoint_every: expected at least 1 step; got 0"),
    ],
)
def test_wrong_settings_are_refused(change, match, tmp_path):
    file = write_job(tmp_path, {f"{SMALL}.{name}": value for name, value in change.items()})
    with pytest.raises(ValueError, match=f"(?s){SMALL}.{match}"):
        load_config(["--config", str(file)])


def test_an_estimator_has_no_callbacks():
    with pytest.raises(ValueError, match=r"^callbacks: expected none for an estimator"):
        StudentConfig(estimator=LogisticRegression(), callbacks=[LiveView()])


def test_a_killed_training_goes_on_for_the_same_digest_only(tmp_path, digits):
    student = StudentConfig(
        partial(MLP, inputs=64, hidden=[8], outputs=10),
        Optimization(steps=96, batch_size=16),
        checkpoint_every=32,
    )
    seen = []

    def progress(done, total):
        seen.append(done)
        if done == 64 and len(seen) < 3:
            raise KeyboardInterrupt

    def training(digest):
        trainer = StudentTrainer(student.optimization)
        train = partial(trainer.direct, student.network, digits.labelled, classes=10, progress=progress)
        keep(student.network, tmp_path, digits, student.kept(train), digest)

    with pytest.raises(KeyboardInterrupt):
        training("one")
    assert [p.name for p in (tmp_path / "training").glob("*.safetensors")] == [
        "checkpoint-000000064.safetensors"
    ]
    training("one")
    assert seen == [32, 64, 96]
    seen[:] = []
    with pytest.raises(KeyboardInterrupt):
        training("other")
    training("third")
    assert seen == [32, 64, 32, 64, 96]
