"""Temperature scaling of distilled models: to the mixture, on rows without labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from job_helpers import succeed
from scipy.special import log_softmax, softmax

from ensdistill.cli.settings import load_config
from ensdistill.job.predictions import HeldOut
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.scaling import calibration_rows, fit_temperature_to
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember, Moments

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("factor", [0.2, 0.9, 1.0, 4.0])
def test_the_temperature_undoes_a_factor(factor):
    logits = RNG.normal(0, 2, (400, 7))
    assert fit_temperature_to(factor * logits, softmax(logits, -1), prior_rows=0) == pytest.approx(
        factor, rel=1e-4
    )
    assert fit_temperature_to(factor * logits, softmax(logits, -1)) == pytest.approx(factor, rel=0.04)


def test_the_temperature_is_never_worse_than_none():
    logits = RNG.normal(0, 3, (50, 4))
    target = softmax(logits / 2 + RNG.normal(0, 1, (50, 4)), -1)
    fitted = fit_temperature_to(logits, target, prior_rows=0)
    losses = [
        -(target * log_softmax(logits / t, -1)).sum(1).mean()
        for t in (fitted, 1.0, 0.98 * fitted, 1.02 * fitted)
    ]
    assert losses[0] <= min(losses[1:])
    few = fit_temperature_to(logits, target)
    assert 1 < few < fitted


def test_nothing_to_fit_to_is_no_change():
    assert fit_temperature_to(np.empty((0, 3)), np.empty((0, 3))) == 1.0


def config_of(folder: Path, *words: str):
    return load_config(["--config", str(folder.parents[1] / "job.yaml"), *words])


def ensemble_of(folder: Path, config) -> Ensemble:
    return Ensemble.load(folder / "seed-0" / "teachers" / "ensemble", RunFolder(config).trusted)


def test_the_rows_are_the_pool_and_the_target_is_the_mixture(finished_job):
    config = config_of(finished_job)
    ensemble = ensemble_of(finished_job, config)
    inputs, probabilities, *_ = calibration_rows(RunFolder(config), 0, ensemble)
    assert np.array_equal(inputs, config.split(0).pool.inputs)
    # The cache is of eight bits.
    assert np.abs(probabilities - ensemble.predict_proba(inputs)).max() < 0.02
    assert probabilities.sum(1) == pytest.approx(1)


@pytest.mark.parametrize("synthetic", [True, False])
def test_without_a_pool_the_rows_are_synthetic_or_none(finished_job, tmp_path, synthetic):
    shutil.copytree(finished_job.parents[1], tmp_path, dirs_exist_ok=True)
    settings = yaml.safe_load((tmp_path / "job.yaml").read_text()) | {"folder": str(tmp_path / "runs")}
    settings["cache"]["transfer"] |= {"pool": False} if synthetic else {"pool": False, "synthetic": []}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    succeed("cache", "build", tmp_path / "job.yaml")
    config = config_of(tmp_path / "runs" / "tiny")
    rows = calibration_rows(RunFolder(config), 0, ensemble_of(tmp_path / "runs" / "tiny", config))
    assert (rows is not None) == synthetic
    if rows is None:
        return
    inputs, probabilities, *_ = rows
    assert (len(inputs), probabilities.shape) == (60, (60, 10))
    known = {
        row.tobytes() for part in (config.split(0).labelled, config.split(0).test) for row in part.inputs
    }
    assert not any(row.tobytes() in known for row in inputs)


def test_the_squared_error_is_that_of_the_weighted_means_on_rows_with_a_label():
    mean = np.random.default_rng(0).normal(size=(3, 40, 2))
    labels = np.random.default_rng(1).normal(size=(40, 2))
    members = [ArrayMember(name=f"m{k}", means=one) for k, one in enumerate(mean)]
    ensemble = Ensemble.from_members(members, task="regression", weights=[0.25, 0.75, 0.0])
    expected = np.square(0.25 * mean[0] + 0.75 * mean[1] - labels).mean(0)
    blind = np.where(np.arange(3)[:, None, None] == 2, np.nan, mean)  # a member without weight
    for predictions in (mean, blind):
        found = HeldOut(Moments(predictions, None), labels).squared_error(ensemble)
        np.testing.assert_allclose(found, expected)
    gaps = np.where(np.arange(40)[:, None] < 10, labels, np.nan)
    some = HeldOut(Moments(mean, None), gaps).squared_error(ensemble)
    np.testing.assert_allclose(some, np.square(0.25 * mean[0] + 0.75 * mean[1] - labels)[:10].mean(0))
    unknown = np.where(np.arange(3)[:, None, None] == 0, np.nan, mean)
    assert HeldOut(Moments(unknown, None), labels).squared_error(ensemble) is None
