"""A student's part of the transfer set: other weights and targets from the same cache, and no teacher asked."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from job_helpers import JOB, run, succeed, write_job
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from ensdistill import Ensemble
from ensdistill.cache import cache_targets
from ensdistill.cli.settings import load_config
from ensdistill.data import Rows
from ensdistill.job import stages
from ensdistill.job.config import CacheConfig
from ensdistill.job.rows_config import StudentRows
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stored import labelled_targets
from ensdistill.job.student_rows import Stored, choices, student_rows
from ensdistill.job.unit import Unit
from ensdistill.loss.settings import LossSettings

OWN = {"synthetic": 0.25, "labelled": "mixed"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    students = {"wide": JOB["distill"]["students"]["wide"] | {"rows": OWN}}
    file = write_job(tmp_path_factory.mktemp("rows"), {"distill.students": students})
    with mock.patch.object(stages, "student_rows", wraps=student_rows) as asked:
        succeed("distill", file)
    return RunFolder(load_config(["--config", str(file)])), asked


def test_a_student_is_trained_on_its_own_rows(job):
    folder, asked = job
    (_, seed, given, _), _ = asked.call_args
    assert (seed, given) == (0, StudentRows(**OWN))
    assert folder.is_finished(Unit("distill", 0, "wide"))
    assert not (folder.of(Unit("distill", 0, "wide")) / "targets").exists()


def test_other_rows_make_the_student_stale_and_nothing_else(job):
    folder, _ = job
    words = [
        "--config",
        str(folder.path.parents[1] / "job.yaml"),
        "--distill.students.wide.rows.synthetic",
        "1",
    ]
    other = RunFolder(load_config(words))
    stale = [unit.stage for unit in folder.units("report") if not other.is_finished(unit)]
    assert stale == ["distill"]


def test_labelled_rows_have_other_targets_and_no_member_predicts(job, tmp_path):
    folder, _ = job
    stored = load_file(folder.held_out(0))
    rows, plain = student_rows(folder, 0, None, tmp_path)
    own = plain.gather_logits(rows.uids)
    with mock.patch("ensdistill.teachers.Ensemble.predict_logits", side_effect=AssertionError):
        kinds = {
            kind: student_rows(folder, 0, StudentRows(labelled=kind), tmp_path / kind)[1]
            for kind in ("mixed", "out_of_fold")
        }
    labels, count = stored["labels"], len(stored["labels"])
    mixed, held = (kinds[kind].gather_logits(rows.uids) for kind in ("mixed", "out_of_fold"))
    half = 0.5 * softmax(own[:, :count], -1) + 0.5 * np.eye(10)[labels]
    assert np.abs(softmax(mixed[:, :count], -1) - half).max() < 0.01
    agree = (held[:, :count].argmax(-1) == stored["logits"].argmax(-1)).mean()
    assert agree > 0.97  # the codec has 8 bits
    assert (own[:, :count].argmax(-1) == stored["logits"].argmax(-1)).mean() < 0.97
    for other in (mixed, held):
        assert np.abs(softmax(other[:, count:], -1) - softmax(own[:, count:], -1)).max() < 0.01


def test_synthetic_rows_weigh_less_or_are_left_out(job, tmp_path):
    folder, _ = job
    rows = folder.transfer(0)
    none, _ = student_rows(folder, 0, StudentRows(synthetic=0), tmp_path)
    quarter, _ = student_rows(folder, 0, StudentRows(synthetic=0.25), tmp_path)
    assert len(none) == len(rows) - 60 == 200
    np.testing.assert_array_equal(none.inputs, rows.inputs[:200])
    np.testing.assert_array_equal(quarter.weights, [1.0] * 200 + [0.25] * 60)


def test_a_search_chooses_among_the_parts_that_the_cache_has(job):
    folder, _ = job
    names = [
        "given",
        "a quarter of the synthetic rows' weight",
        "no synthetic rows",
        "labels mixed in",
        "out of fold",
    ]
    # The pool of 100 rows has too few that can judge, so synthetic rows judge, and are in all parts.
    assert list(choices(folder, 0)) == [name for name in names if name != "no synthetic rows"]
    judged = SimpleNamespace(cache=folder.config.cache, validation=lambda seed: folder.transfer(seed))
    with mock.patch.object(folder, "config", judged):
        assert list(choices(folder, 0)) == names
    judged.cache = replace(folder.config.cache, codec="topk-4", mixture_at=1.0)
    with mock.patch.object(folder, "config", judged):
        assert list(choices(folder, 0)) == names[:3]  # a mixture has no members whose targets could be others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"synthetic": 2}, "rows.synthetic: expected a weight in [0, 1]; got 2"),
        ({"labelled": "none"}, "labelled"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, change, message):
    status, _, err = run("distill", write_job(tmp_path, {"distill.students.wide.rows": change}))
    assert status == 2
    assert message in err


def test_other_targets_than_the_cache_can_give_are_refused(tmp_path):
    change = {"distill.students.wide.rows": {"labelled": "out_of_fold"}, "cache.labelled": "mixed"}
    status, _, err = run("distill", write_job(tmp_path, change))
    assert status == 2
    assert "distill.students.wide.rows.labelled: expected none with cache.labelled: mixed" in " ".join(
        err.split()
    )


def test_a_member_without_weight_has_no_other_targets(tmp_path):
    rng = np.random.default_rng(0)
    logits, held_out = rng.normal(size=(3, 20, 3)), rng.normal(size=(3, 8, 3)).astype(np.float32)
    labels = np.r_[rng.integers(0, 3, 8), np.full(12, -100)]
    rows = Rows(rng.normal(size=(20, 4)).astype(np.float32), np.arange(20), labels)
    ensemble = Ensemble.from_members(list(logits.astype(np.float32)), weights=[0.5, 0, 0.5])
    cache = cache_targets(ensemble.weighted(), rows, tmp_path / "given", codec="fp32")
    save_file({"logits": held_out, "labels": labels[:8]}, tmp_path / "held_out")
    settings = CacheConfig(labelled="out_of_fold")
    targets = labelled_targets(Stored(ensemble, cache), settings, tmp_path / "held_out")
    made = cache_targets(targets, rows, tmp_path / "other", codec="fp32").gather_logits(rows.uids)
    expected = np.concatenate([held_out[[0, 2]], logits[[0, 2], 8:]], axis=1)
    np.testing.assert_allclose(softmax(made, -1), softmax(expected, -1), atol=1e-5)


def test_targets_are_made_for_the_temperature_of_a_students_own_loss(job, tmp_path):
    folder, _ = job
    own, distill = LossSettings(temperature=30.0), folder.config.distill
    students = {"wide": replace(distill.students["wide"], loss=own)}
    config = replace(folder.config, distill=replace(distill, students=students))
    assert config.distill.max_temperature == 30.0
    with mock.patch.object(folder, "config", config):
        _, cache = student_rows(folder, 0, StudentRows(labelled="mixed"), tmp_path / "own")
    assert cache.manifest["floor"] == pytest.approx(30 * (np.log(10) + 16))
