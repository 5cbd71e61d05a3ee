"""Which units a change of the settings, the seed or the data does again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from job_helpers import fingerprints, job_file, numbers, stamps, succeed, trained
from safetensors.numpy import load_file

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json
from ensdistill.data import Digits, Split
from ensdistill.job.contents import contents
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stages import run_unit
from ensdistill.job.unit import Unit
from ensdistill.student import StudentTrainer, Validation
from ensdistill.teachers.members import load_member

ALL = {
    f"seed-0/{name}"
    for name in ("teachers", "cache", "direct/small", "direct/wide", "distill/small", "distill/wide")
}
DIRECT, DISTILL = ({name for name in ALL if stage in name} for stage in ("/direct/", "/distill/"))


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
        (["--distill.students.small.ema", "0.9"], {"seed-0/distill/small"}),
        (["--cache.codec", "fp16"], {"seed-0/cache", *DISTILL}),
        (["--cache.mixture_at", "1"], {"seed-0/cache", *DISTILL}),
        (["--cache.augment", "ensdistill.data.augmentation.ShiftImages"], {"seed-0/cache", *DISTILL}),
        (["--teachers.prior_rows", "9"], {"seed-0/teachers", "seed-0/cache", *DISTILL}),
        (["--data.init_args.pool", "90"], ALL),  # another draw: other test rows, which the curves watch
        (["--workers", "2"], set()),
    ],
)
def test_a_setting_redoes_the_units_that_depend_on_it(copy, override, redone):
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


def test_the_folder_of_a_save_that_was_killed_is_removed(copy):
    left = copy / "seed-0" / "teachers" / ".ensemble.abcd1234"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (copy / "seed-0" / "teachers" / "stage.json").unlink()
    succeed("teachers", job_file(copy))
    assert not left.exists()


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


def test_a_student_has_the_weights_that_are_the_best_on_rows_held_out_of_the_transfer_set(copy):
    validation = {"share": 0.2, "metric": "agreement", "patience": 9}
    small = ["--distill.students.small.validation", json.dumps(validation)]
    succeed("distill", job_file(copy), *small, "--distill.students.small.ema", "0.8")
    config = load_config(["--config", str(job_file(copy)), *small, "--distill.students.small.ema", "0.8"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shown = []
    (copy / "seed-0" / "distill" / "small" / "student" / "stage.json").unlink()
    unit = Unit("distill", 0, "small")
    run_unit(
        RunFolder(config), unit, lambda what, done, total, figures="": shown.append(f"{what}: {figures}")
    )
    assert re.fullmatch(r"student: loss [\d.]+ · kl [\d.]+ · agreement [\d.]+%", shown[-1])
    student, folder = config.distill.students["small"], copy / "seed-0" / "distill" / "small" / "student"
    again = StudentTrainer(student.optimization, ema=0.8).distill(
        student.model,
        RunFolder(config).transfer(0),
        TargetCache.open(copy / "seed-0" / "cache" / "targets"),
        validation=Validation(rows=0.2, metric="agreement", patience=9),
    )
    torch.set_num_threads(threads)
    kept, inputs = load_member(folder), config.split(0).test.inputs[:50]
    with torch.no_grad():
        np.testing.assert_array_equal(
            kept.predict_logits(inputs), again.module(torch.from_numpy(inputs)).numpy()
        )
    assert read_json(folder / "evaluations.json") == again.record()
    assert again.choice.metric == "agreement"
    assert not (folder.parents[1] / "wide" / "student" / "evaluations.json").exists()


def test_the_best_member_is_chosen_without_the_test_rows(finished_job):
    record = read_json(finished_job / "seed-0" / "teachers" / "stage.json")
    held_out = load_file(finished_job / "seed-0" / "teachers" / "held_out.safetensors")
    assert held_out["logits"].shape == (2, 100, 10)
    assert record["best_member"] == min(record["held_out_nll"], key=record["held_out_nll"].get)
    assert (
        json.loads((finished_job / "report.json").read_text())["models"]["best_member"]["note"]
        == record["best_member"]
    )


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


def test_another_description_makes_another_report(copy):
    models = trained(copy)
    succeed("run", job_file(copy), "--distill.students.small.description", "a tiny one")
    assert numbers(copy)["students"]["small"]["description"] == "a tiny one"
    assert trained(copy) == models


def test_a_report_is_out_of_date_once_work_begins(copy):
    assert contents(copy).report is not None
    succeed("distill", job_file(copy), "--distill.students.small.optimization.learning_rate", "0.031")
    found = contents(copy)
    assert (found.report, found.finished["distill small"]) == (None, 1)
    succeed("run", job_file(copy), "--distill.students.small.optimization.learning_rate", "0.031")
    assert contents(copy).report is not None
