"""What is done again, what is kept, and what a stage refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from job_helpers import fingerprints, numbers, run, stamps, succeed, trained, write_job
from safetensors.numpy import load_file
from sklearn.naive_bayes import GaussianNB

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json, write_arrays
from ensdistill.data import Digits, Split
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup
from ensdistill.job.run_folder import RunFolder, Unit
from ensdistill.job.scaling import calibration_rows
from ensdistill.report.results import KINDS
from ensdistill.student.trainer import StudentTrainer
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import load_member

ALL = {
    f"seed-0/{name}"
    for name in ("teachers", "cache", "direct/small", "direct/wide", "distill/small", "distill/wide")
}
DIRECT, DISTILL = ({name for name in ALL if stage in name} for stage in ("/direct/", "/distill/"))


@pytest.fixture
def copy(finished_job, tmp_path):
    """A copy of the finished job that may be changed: its run folder; job.yaml is two folders up."""
    write_job(tmp_path)
    shutil.copytree(finished_job, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def job_file(folder: Path) -> Path:
    return folder.parents[1] / "job.yaml"


def test_the_units_and_what_they_need(finished_job):
    config = load_config(["--config", str(job_file(finished_job)), "--seeds", "2"])
    run = RunFolder(config)
    every = run.units("report")
    assert len(every) == len(set(every)) == 2 * (1 + 1 + 2 + 2)
    assert run.units("teachers") == [Unit("teachers", 0), Unit("teachers", 1)]
    assert {unit.stage for unit in run.units("cache")} == {"teachers", "cache"}
    assert run.units("distill") == every
    assert all(need in every for unit in every for need in unit.needs())
    assert Unit("distill", 1, "wide").needs() == [Unit("cache", 1)]
    assert not Unit("direct", 0, "small").needs()  # a baseline sees no teacher


@pytest.mark.parametrize(
    ("words", "says"), [(["run"], "figures/ beside it (unchanged)"), (["cache", "build"], "= cache build: ")]
)
def test_a_command_without_work_says_so(copy, words, says):
    out = succeed(*words, job_file(copy)).replace("\n", "")
    assert says in out
    assert out.rstrip().endswith("(unchanged)")
    assert "✓" not in out


def test_a_second_run_touches_nothing(copy):
    before = stamps(copy)
    out = succeed("run", job_file(copy))
    assert stamps(copy) == before
    assert "Retained gain" in out  # and still shows what it found
    for command in ("teachers", "distill", "report"):
        succeed(command, job_file(copy))
    succeed("cache", "build", job_file(copy))
    assert stamps(copy) == before


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        (["--distill.loss.temperature", "3"], DISTILL),
        (["--distill.loss.alpha", "0.5"], DISTILL),
        (["--distill.label_smoothing", "0.2"], DIRECT),
        (["--distill.mixed_precision", "bf16"], DIRECT | DISTILL),
        (
            ["--distill.students.small.optimization.weight_decay", "0.5"],
            {"seed-0/direct/small", "seed-0/distill/small"},
        ),
        (["--cache.codec", "fp16"], {"seed-0/cache", *DISTILL}),
        (["--cache.mixture_at", "1"], {"seed-0/cache", *DISTILL}),
        (["--cache.augment", "ensdistill.data.augmentation.ShiftImages"], {"seed-0/cache", *DISTILL}),
        (["--teachers.prior_rows", "9"], {"seed-0/teachers", "seed-0/cache", *DISTILL}),
        (["--data.init_args.pool", "90"], ALL),  # another draw: other test rows, which the curves watch
        (["--workers", "2"], set()),
    ],
)
def test_a_setting_redoes_what_depends_on_it(copy, override, redone):
    if override[0] == "--data.init_args.pool":
        redone = redone - {"seed-0/teachers"}  # the labelled rows are drawn first, so they are the same ones
    before, files = fingerprints(copy), stamps(copy)
    succeed("distill", job_file(copy), *override)
    after = fingerprints(copy)
    assert {name for name in ALL if after[name] != before[name]} == redone
    kept = {
        name: stamp
        for name, stamp in files.items()
        if name.startswith("seed-") and not any(name.startswith(u + "/") for u in redone)
    }
    now = stamps(copy)
    assert {name: now[name] for name in kept} == kept
    changed = {
        str(Path(name).parent)
        for name in trained(copy)
        if name not in files or now[name][1] != files[name][1]
    }
    assert all(any(name.startswith(unit) for name in changed) for unit in redone if unit != "seed-0/teachers")


def test_the_same_settings_again_give_the_same_bits(copy, finished_job):
    shutil.rmtree(copy)
    succeed("run", job_file(copy))  # in this process; the other was made by a worker
    assert trained(copy) == trained(finished_job)
    assert numbers(copy) == numbers(finished_job)


def test_another_seed_is_added(copy):
    files = stamps(copy)
    out = succeed("run", job_file(copy), "--seeds", "2")
    assert {name.replace("seed-0", "seed-1") for name in ALL} <= set(fingerprints(copy))
    now = stamps(copy)
    assert {name: now[name] for name in files if name.startswith("seed-0")} == {
        n: s for n, s in files.items() if n.startswith("seed-0")
    }
    assert "seeds 0, 1" in out.replace("\n", " ")
    report = json.loads((copy / "report.json").read_text())
    assert report["seeds"] == [0, 1]
    assert len(set(report["models"]["student"]["nll"]["per_seed"])) == 2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_student_is_the_trainers_at_that_temperature(copy, temperature):
    succeed("distill", job_file(copy), "--distill.loss.temperature", str(temperature))
    config = load_config(["--config", str(job_file(copy))])
    seed = copy / "seed-0"
    best = read_json(seed / "teachers" / "stage.json")["best_member"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, member in (("student", None), ("distilled_from_best_member", best)):
        kept = load_member(seed / "distill" / "small" / kind)
        student = config.distill.students["small"]
        trainer = StudentTrainer(student.optimization, temperature=temperature)
        cache, rows = TargetCache.open(seed / "cache" / "targets"), RunFolder(config).transfer(0)
        again = trainer.distill(student.model, rows, cache, seed=0, member=member)
        inputs = config.split(0).test.inputs[:50]
        with torch.no_grad():
            np.testing.assert_array_equal(
                kept.predict_logits(inputs), again.module(torch.from_numpy(inputs)).numpy()
            )
    torch.set_num_threads(threads)


SHIFTED = {"class_path": "ensdistill.data.augmentation.ShiftImages"}


def logits_of(folder: Path, inputs: np.ndarray, student: str = "small") -> dict[str, np.ndarray]:
    kinds = ("student", "distilled_from_best_member")
    return {
        kind: load_member(folder / "seed-0" / "distill" / student / kind).predict_logits(inputs)
        for kind in kinds
    }


def test_a_cache_of_the_mixture_only_teaches_the_same(copy):
    inputs = load_config(["--config", str(job_file(copy))]).split(0).test.inputs
    succeed("distill", job_file(copy), "--distill.loss.temperature", "3", "--cache.codec", "fp32")
    whole = logits_of(copy, inputs)
    words = ["--distill.loss.temperature", "3", "--cache.codec", "fp32", "--cache.mixture_at", "3"]
    succeed("distill", job_file(copy), *words)
    for kind, logits in logits_of(copy, inputs).items():
        # What differs is the rounding of a log-probability, 1e-6 of it, over thirty steps.
        np.testing.assert_allclose(logits, whole[kind], atol=1e-3)
    assert np.abs(whole["student"] - whole["distilled_from_best_member"]).max() > 0.1
    targets, best = (
        TargetCache.open(copy / "seed-0" / "cache" / name) for name in ("targets", "best_member")
    )
    assert (targets.temperature, best.temperature, targets.layout.bytes) == (3.0, 3.0, best.layout.bytes)
    assert best.names == (read_json(copy / "seed-0" / "teachers" / "stage.json")["best_member"],)
    succeed("distill", job_file(copy))  # every member again
    assert not (copy / "seed-0" / "cache" / "best_member").exists()
    assert np.abs(logits_of(copy, inputs)["student"] - whole["student"]).max() > 0.1


@pytest.mark.parametrize("codec", ["topk-3", "counts-50"])
def test_a_whole_job_from_compressed_views(copy, codec):
    file = write_job(
        copy.parents[1],
        {"cache.codec": codec, "cache.mixture_at": 2, "distill.loss.temperature": 2, "cache.max_kl": 9.0},
    )
    succeed("run", file, "--cache.views", "3", "--cache.augment", SHIFTED["class_path"])
    config = load_config(["--config", str(file)])
    targets, best = (
        TargetCache.open(copy / "seed-0" / "cache" / name, check="full")
        for name in ("targets", "best_member")
    )
    for cache in (targets, best):
        assert (cache.manifest["codec"], cache.views, cache.temperature) == (codec, 3, 2.0)
    rows, student = RunFolder(config).transfer(0), config.distill.students["small"]
    inputs, trainer = config.split(0).test.inputs[:50], StudentTrainer(student.optimization, temperature=2.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for cache, kept in zip((targets, best), logits_of(copy, inputs).values(), strict=True):
        again = trainer.distill(student.model, rows, cache, seed=0, augment=ShiftImages())
        with torch.no_grad():
            np.testing.assert_array_equal(kept, again.module(torch.from_numpy(inputs)).numpy())
    torch.set_num_threads(threads)
    # The report judges every model that it judges otherwise, and calibrates to the mixture of the rows as
    # they are.
    report = json.loads((copy / "report.json").read_text())
    assert set(report["models"]) == set(KINDS)
    ensemble = Ensemble.load(copy / "seed-0" / "teachers" / "ensemble")
    pool, probabilities = calibration_rows(RunFolder(config), 0, ensemble)
    assert np.array_equal(pool, config.split(0).pool.inputs)
    np.testing.assert_array_equal(probabilities, ensemble.predict_proba(pool))


def test_views_are_other_pixels_for_other_seeds(copy):
    file = write_job(copy.parents[1], {"cache.views": 2, "cache.augment": SHIFTED, "seeds": 2})
    succeed("cache", "build", file)
    made_by = [
        TargetCache.open(copy / f"seed-{seed}" / "cache" / "targets").manifest["fingerprint"]["views"]
        for seed in range(2)
    ]
    assert [views["seed"] for views in made_by] == [0, 1]


def test_targets_that_would_be_too_inexact_are_not_stored(copy):
    before = {name: stamps(copy / "seed-0" / name) for name in ("teachers", "distill")}
    status, _, err = run("distill", job_file(copy), "--cache.codec", "bf16", "--cache.max_kl", "1e-9")
    assert status == 1
    err = err.replace("\n", " ")
    assert "seed 0 · cache: max_kl: expected at most 1e-09 nats for every row; codec 'bf16' has" in err
    assert "choose a more exact codec, or allow more" in err
    assert {name: stamps(copy / "seed-0" / name) for name in before} == before
    succeed("cache", "build", job_file(copy), "--cache.codec", "bf16", "--cache.max_kl", "1e-3")
    held = TargetCache.open(copy / "seed-0" / "cache" / "targets").manifest
    assert 1e-9 < held["statistics"]["kl"]["max"] <= 1e-3
    assert (held["codec"], read_json(copy / "seed-0" / "cache" / "stage.json")["statistics"]) == (
        "bf16",
        held["statistics"],
    )


def test_the_best_member_is_chosen_without_the_test_rows(finished_job):
    record = read_json(finished_job / "seed-0" / "teachers" / "stage.json")
    held_out = load_file(finished_job / "seed-0" / "teachers" / "held_out.safetensors")
    assert held_out["logits"].shape == (2, 100, 10)
    assert record["best_member"] == min(record["held_out_nll"], key=record["held_out_nll"].get)
    assert (
        json.loads((finished_job / "report.json").read_text())["models"]["best_member"]["note"]
        == record["best_member"]
    )


def test_a_lost_file_is_made_again(copy, finished_job):
    (copy / "seed-0" / "distill" / "small" / "student" / "model.safetensors").unlink()
    (copy / "seed-0" / "cache" / "transfer.safetensors").write_bytes(b"cut")
    before = stamps(copy / "seed-0" / "teachers")
    succeed("run", job_file(copy))
    assert trained(copy) == trained(finished_job)
    assert stamps(copy / "seed-0" / "teachers") == before


def test_transfer_rows_that_changed_after_the_cache_was_built(copy):
    file = copy / "seed-0" / "cache" / "transfer.safetensors"
    arrays = load_file(file)
    arrays["inputs"][7, 0, 3, 3] += 0.25
    write_arrays(file, arrays)
    before = stamps(copy / "seed-0" / "distill" / "small" / "student")
    status, _, err = run("distill", job_file(copy), "--distill.loss.temperature", "3")
    assert status == 1
    assert "distill small" in err
    assert "inputs: uid 7 (float32 [1, 8, 8]) is not what the cache was made from; 1 of 260 differ" in err
    assert stamps(copy / "seed-0" / "distill" / "small" / "student") == before


def test_a_flipped_byte_in_the_cache_stops_before_any_training(copy):
    shard = copy / "seed-0" / "cache" / "targets" / "shard-00000.safetensors"
    blob = bytearray(shard.read_bytes())
    blob[len(blob) // 2] ^= 1
    shard.write_bytes(blob)
    before = {kind: stamps(copy / "seed-0" / "distill" / kind / "student") for kind in ("small", "wide")}
    status, _, err = run("distill", job_file(copy), "--distill.loss.temperature", "3")
    assert status == 1
    assert "shard-00000.safetensors: the bytes are not those that were written (" in err
    assert {
        kind: stamps(copy / "seed-0" / "distill" / kind / "student") for kind in ("small", "wide")
    } == before
    # What it tells to do is right.
    shutil.rmtree(copy / "seed-0" / "cache")
    succeed("distill", job_file(copy), "--distill.loss.temperature", "3")


LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', "
    "flush=True); sys.stdin.read()"
)


def test_a_folder_that_another_process_writes(copy):
    before = stamps(copy)
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(copy / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        status, out, err = run("run", job_file(copy), "--distill.loss.temperature", "3")
        other.stdin.close()
    assert (status, out) == (1, "")
    assert f"{copy} is being written by another process; wait for it to end" in err
    assert stamps(copy) == before
    succeed("run", job_file(copy))


@pytest.mark.parametrize("write", [1, 4, 12, 20])
def test_a_full_disk_then_the_same_command(copy, finished_job, monkeypatch, write):
    shutil.rmtree(copy)
    left, fsync = write, os.fsync

    def full(descriptor):
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run("distill", job_file(copy))
    monkeypatch.setattr(os, "fsync", fsync)
    assert status == 1
    assert "no space left on the disk of" in err
    assert "free some space and run the same command again" in err.replace("\n", " ")
    assert "ENSDISTILL_TRACEBACK" not in err
    assert not list(copy.rglob("*.part"))
    succeed("distill", job_file(copy))
    assert trained(copy) == trained(finished_job)


class Picky(GaussianNB):
    """Has no answer for digits that nobody drew: mixup's are not in sixteenths."""

    def predict_proba(self, x):
        answer = super().predict_proba(x)
        answer[(x * 16 % 1 != 0).any(1)] = np.nan
        return answer


def test_a_transfer_row_without_an_answer_is_named_by_where_it_comes_from(tmp_path):
    file = write_job(tmp_path, {"teachers.members.1.init_args.estimator.class_path": "test_stages.Picky"})
    status, _, err = run("cache", "build", file)
    assert status == 1
    err = err.replace("\n", " ")
    assert (
        "seed 0 · cache: picky: probabilities: expected rows that are at least 0 and sum to 1; row 200 is "
        "[nan" in err
    )
    assert "that row has uid 200; uid 200 of the transfer set is row 0 of mixup" in err


@pytest.mark.parametrize(
    "change", [{"teachers.folds": 60}, {"teachers.members.0.init_args.model.init_args.outputs": 7}]
)
def test_what_cannot_end_well_is_not_begun(tmp_path, change):
    status, _, _ = run("distill", write_job(tmp_path, change))
    assert status == 1
    assert not list(tmp_path.glob("runs/tiny/seed-*"))


def test_other_test_labels_make_another_report(copy, monkeypatch):
    split = Digits.split

    def flipped(self: Digits, seed: int) -> Split:
        whole = split(self, seed)
        return replace(whole, test=replace(whole.test, labels=(whole.test.labels + 1) % 10))

    before, models = numbers(copy), trained(copy)
    monkeypatch.setattr(Digits, "split", flipped)
    succeed("run", job_file(copy))
    after = numbers(copy)
    assert (
        after["models"]["ensemble"]["accuracy"]["mean"]
        < 0.3
        < before["models"]["ensemble"]["accuracy"]["mean"]
    )
    assert trained(copy) == models


def test_copies_of_training_rows_among_the_test_rows_are_refused_then_allowed_and_counted(copy, monkeypatch):
    split = Digits.split

    def leaking(self: Digits, seed: int) -> Split:
        whole = split(self, seed)
        inputs = whole.test.inputs.copy()
        inputs[:30] = np.concatenate([whole.labelled.inputs[:20], whole.pool.inputs[:10]])
        return replace(whole, test=replace(whole.test, inputs=inputs))

    monkeypatch.setattr(Digits, "split", leaking)
    before = stamps(copy)
    status, _, err = run("run", job_file(copy))
    assert status == 1
    err = err.replace("\n", " ")
    assert (
        "data: seed 0: 30 of 1597 test rows (1.9%) equal rows that are trained on (20 of them labelled, 10 "
        "of them pool)" in err
    )
    assert "set max_test_copies to 0.019" in err
    assert stamps(copy) == before
    out = " ".join(succeed("run", job_file(copy), "--max_test_copies", "0.019").split())
    report = json.loads((copy / "report.json").read_text())
    assert {name: report["copies"][name] for name in ("test", "labelled", "pool", "synthetic")} == {
        "test": 30,
        "labelled": 20,
        "pool": 10,
        "synthetic": 0,
    }
    assert "30 test rows equal rows that are trained on: 20 labelled, 10 of the pool." in out
    assert "Without the 30 test rows that equal rows trained on" in out
    assert report["without_copies"]["small"]["models"]["ensemble"] != report["models"]["ensemble"]


class Oracle(Mixup):
    """A synthetic source that gives back test rows."""

    def make(self, base: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return Digits(100, 100).split(0).test.inputs[:40]


def test_synthetic_rows_that_equal_test_rows_are_refused(copy):
    file = write_job(
        copy.parents[1],
        {"cache.transfer.synthetic": [{"class_path": "test_stages.Oracle", "init_args": {"rows": 40}}]},
    )
    status, _, err = run("cache", "build", file)
    assert status == 1
    assert (
        "seed 0 · cache: data: seed 0: 40 of 1597 test rows (2.5%) equal rows that are trained on (40 of "
        "them synthetic)" in (err.replace("\n", " "))
    )
    assert not (copy / "seed-0" / "cache" / "stage.json").exists()


def test_folds_that_copies_make_impossible_are_not_begun(tmp_path, monkeypatch):
    split = Digits.split

    def few(self: Digits, seed: int) -> Split:
        whole = split(self, seed)
        inputs, zeros = whole.labelled.inputs.copy(), whole.labelled.labels == 0
        inputs[zeros] = inputs[zeros][0]
        return replace(whole, labelled=replace(whole.labelled, inputs=inputs))

    monkeypatch.setattr(Digits, "split", few)
    status, _, err = run("distill", write_job(tmp_path))
    assert status == 1
    assert (
        "teachers.folds: 2 folds are too many: equal rows stay in one fold, and the copies of class 0 would "
        "all" in err.replace("\n", " ")
    )
    assert not list(tmp_path.glob("runs/tiny/seed-*"))


def test_other_words_make_another_report(copy):
    models = trained(copy)
    succeed("run", job_file(copy), "--distill.students.small.description", "a tiny one")
    assert numbers(copy)["students"]["small"]["description"] == "a tiny one"
    assert trained(copy) == models


class NoShift(ShiftImages):
    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"inputs: NoShift wants other rows; got {list(inputs.shape)}")


NO_SHIFT = {"class_path": "test_stages.NoShift"}
NO_DATA = {
    "class_path": "ensdistill.data.ArrayDataset",
    "init_args": {"inputs": "no.npy", "labels": "no.npy", "labelled": 5},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"distill.students.small.model.init_args.outputs": 7},
            "model: MLP: expected 10 outputs per sample, one for each class",
        ),
        (
            {"teachers.members.0.init_args.model.init_args.outputs": 7},
            "teachers.members.0 (mlp): model: MLP: expected 10 outputs",
        ),
        (
            {"teachers.folds": 60},
            "teachers.folds: expected at most 10, because 10 of the labelled rows of seed 0 are of class "
            "'0'; got 60",
        ),
        (
            {"cache.codec": "topk-11", "cache.mixture_at": 1},
            "cache.codec: topk-11 needs at least 11 classes; got 10",
        ),
        ({"cache.augment": NO_SHIFT}, "cache.augment: inputs: NoShift wants other rows; got [2, 1, 8, 8]"),
        ({"distill.folds": 60}, "distill.folds: expected at most 10, because 10 of the labelled rows"),
        (
            {"data.init_args.labelled": 10},
            "data: 1 of the labelled rows of seed 0 are of class '0'; expected at least 2 of each class",
        ),
        ({"data.init_args.labelled": 1800}, "data: Digits.split(seed=0): labelled=1800"),
        ({"distill.students.small.optimization.learning_rate": 1e30}, "student: the loss is nan at step"),
        ({"data": NO_DATA}, "inputs: there is no file no.npy"),
    ],
)
def test_settings_that_only_the_work_can_refute(copy, change, message):
    file = write_job(copy.parents[1], change)
    status, out, err = run("distill", file)
    assert (status, out) == (1, "")
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
