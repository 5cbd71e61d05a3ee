"""Settings: files, overrides, classes by import path, and ``--print_config``."""

from __future__ import annotations

from pathlib import Path

import yaml
from job_helpers import succeed, write_job

from ensdistill.cli.settings import load_config
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup, Munge
from ensdistill.job.run_folder import RunFolder


def test_another_class_by_the_command_line_takes_its_own_arguments(tmp_path):
    words = [
        "--data.class_path",
        "ensdistill.data.ArrayDataset",
        "--data.inputs",
        "x.npy",
        "--data.labels",
        "y.npy",
        "--data.labelled",
        "30",
    ]
    config = load_config(["--config", str(write_job(tmp_path)), *words])
    assert (type(config.data).__name__, config.data.labelled) == ("ArrayDataset", 30)


def test_overrides_are_read_as_their_settings_are(tmp_path):
    members = [
        "--teachers.members.0.count",
        "3",
        "--teachers.members.1.estimator.init_args.var_smoothing",
        "1e-3",
    ]
    source = "--cache.transfer.synthetic+={class_path: Munge, init_args: {rows: 5}}"
    words = [
        "--name",
        "007",
        "--distill.augment",
        "ShiftImages",
        "--distill.augment.pixels",
        "2",
        source,
        *members,
    ]
    config = load_config(["--config", str(write_job(tmp_path)), *words, "--distill.loss.temperature=2"])
    assert config.name == "007"
    assert config.distill.augment == ShiftImages(2)
    assert config.distill.loss.temperature == 2.0
    assert config.cache.transfer.synthetic == [Mixup(rows=60), Munge(rows=5)]
    assert config.teachers.members[0].count == 3
    assert config.teachers.members[1].estimator.var_smoothing == 1e-3


def test_later_files_change_earlier_ones(tmp_path):
    (tmp_path / "more.yaml").write_text("{distill: {loss: {temperature: 4}}, seeds: 5}")
    config = load_config(
        ["--config", str(write_job(tmp_path)), "--config", str(tmp_path / "more.yaml"), "--seeds", "2"]
    )
    assert (config.distill.loss.temperature, config.seeds, list(config.distill.students)) == (
        4.0,
        2,
        ["small", "wide"],
    )


def test_a_recipe_of_a_model_holds_the_defaults_too(tmp_path):
    # A saved member is built from it, perhaps by a later version with other defaults.
    model = load_config(["--config", str(write_job(tmp_path))]).distill.students["small"].model
    assert model.keywords == {
        "inputs": 64,
        "hidden": [8],
        "outputs": 10,
        "dropout": 0.0,
        "activation": "relu",
    }


def test_print_config_shows_what_would_run_and_can_be_run(tmp_path):
    file = write_job(tmp_path)
    out = succeed("run", file, "--distill.loss.temperature", "3", "--seeds", "2", "--print_config")
    settings = yaml.safe_load(out)
    assert settings["distill"]["loss"]["temperature"] == 3.0
    assert settings["distill"]["loss"]["alpha"] == 1.0  # a default that the file does not name
    assert settings["seeds"] == 2
    assert settings["threads"] == 1
    assert not (tmp_path / "runs").exists()
    (tmp_path / "printed.yaml").write_text(out)
    again = load_config(["--config", str(tmp_path / "printed.yaml")])
    expected = load_config(["--config", str(file), "--distill.loss.temperature", "3", "--seeds", "2"])
    digests = [
        [run.digest(unit) for unit in run.units("report")] for run in (RunFolder(again), RunFolder(expected))
    ]
    assert digests[0] == digests[1]


def test_overrides_reach_the_nested_settings(tmp_path):
    words = [
        "--distill.students.small.optimization.steps",
        "40",
        "--data.init_args.labelled",
        "150",
        "--cache.codec",
        "fp32",
    ]
    config = load_config(["--config", str(write_job(tmp_path)), *words])
    assert config.distill.students["small"].optimization.steps == 40
    assert config.distill.students["small"].optimization.learning_rate == 0.02  # the file's
    assert config.distill.students["wide"].optimization.steps == 30
    assert (config.data.labelled, config.data.pool) == (150, 100)
    assert config.cache.codec == "fp32"


def test_a_word_that_yaml_reads_otherwise_is_text_where_text_is_expected(tmp_path):
    words = ["--distill.mixed_precision", "no", "--name", "2024", "--distill.loss.temperature", "1e1"]
    config = load_config(["--config", str(write_job(tmp_path)), *words])
    assert (config.distill.mixed_precision, config.name, config.distill.loss.temperature) == (
        "no",
        "2024",
        10.0,
    )


def test_the_example_is_valid():
    config = load_config(["--config", str(Path(__file__).parents[2] / "examples" / "digits.yaml")])
    assert (config.name, config.seeds, config.distill.loss.temperature) == ("digits", 3, 1.0)
    assert list(config.distill.students) == ["mlp", "cnn"]
    assert sum(spec.count for spec in config.teachers.members) >= 6
