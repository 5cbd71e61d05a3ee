"""The stage of the cache: mixtures, views, codecs, and inputs or shards that changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from job_helpers import job_file, run, stamps, succeed, write_job
from safetensors.numpy import load_file
from sklearn.naive_bayes import GaussianNB

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json, write_arrays
from ensdistill.data.augmentation import ShiftImages
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.scaling import calibration_rows
from ensdistill.report.results import KINDS
from ensdistill.student.trainer import StudentTrainer
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import load_member

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
        # The difference is the rounding of a log-probability, 1e-6 of it, over thirty steps.
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


def test_a_cache_serves_the_highest_temperature_of_a_student(copy):
    succeed("cache", "build", job_file(copy), "--distill.students.wide.loss.temperature", "30")
    cache = TargetCache.open(copy / "seed-0" / "cache" / "targets")
    assert cache.manifest["floor"] == pytest.approx(30 * (np.log(10) + 16))


@pytest.mark.parametrize("codec", ["topk-3", pytest.param("counts-50", marks=pytest.mark.slow)])
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
    pool, probabilities, *_ = calibration_rows(RunFolder(config), 0, ensemble)
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
    # The remedy in the message works.
    shutil.rmtree(copy / "seed-0" / "cache")
    succeed("distill", job_file(copy), "--distill.loss.temperature", "3")


class Picky(GaussianNB):
    """Returns NaN for pixels that are no multiples of 1/16, as mixup's are."""

    def predict_proba(self, x):
        answer = super().predict_proba(x)
        answer[(x * 16 % 1 != 0).any(1)] = np.nan
        return answer


def test_a_transfer_row_without_an_answer_is_named_by_where_it_comes_from(tmp_path):
    file = write_job(
        tmp_path, {"teachers.members.1.init_args.estimator.class_path": "test_stages_cache.Picky"}
    )
    status, _, err = run("cache", "build", file)
    assert status == 1
    err = err.replace("\n", " ")
    assert (
        "seed 0 · cache: picky: probabilities: expected rows that are at least 0 and sum to 1; row 200 is "
        "[nan" in err
    )
    assert "that row has uid 200; uid 200 of the transfer set is row 0 of mixup" in err
