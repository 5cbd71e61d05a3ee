"""The command line: its commands, what it says about wrong input, and users' own classes."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from job_helpers import fingerprints, mlp, numbers, run, stamps, succeed, trained, write_job

from ensdistill.cli.main import main
from ensdistill.cli.settings import load_config
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup, Munge
from ensdistill.job.run_folder import RunFolder

METRICS = ("accuracy", "nll", "brier", "ece")
KINDS = (
    "ensemble",
    "best_member",
    "direct",
    "direct_label_smoothing",
    "direct_temperature_scaled",
    "direct_label_smoothing_temperature_scaled",
    "distilled_from_best_member",
    "student",
    # After temperature scaling, beside direct's own.
    "student_temperature_scaled",
    "distilled_from_best_member_temperature_scaled",
)


def flat(text: str) -> str:
    """On one line, whatever the terminal's width."""
    return " ".join(text.split())


def test_the_report_has_the_documented_keys(finished_job):
    report = json.loads((finished_job / "report.json").read_text())
    assert report["schema_version"] == 2
    assert report["dataset"] == {
        "name": "Digits",
        "labelled": 100,
        "pool": 100,
        "transfer": 260,
        "test": 1597,
        "classes": 10,
    }
    assert report["seeds"] == [0]
    assert list(report["students"]) == ["small", "wide"]
    for block in (report, *report["students"].values()):
        assert set(block["models"]) == set(KINDS)
        for model in block["models"].values():
            for metric in METRICS:
                assert len(model[metric]["per_seed"]) == 1
                assert model[metric]["mean"] == pytest.approx(model[metric]["per_seed"][0])
            assert model["parameters"] > 0
            assert model["bytes"] > 0
            assert all(
                0 < model["latency_ms"][b]["p50"] <= model["latency_ms"][b]["p95"]
                for b in ("batch_1", "batch_256")
            )
        for metric in ("accuracy", "nll", "brier"):
            assert {"mean", "ci95"} <= set(block["retained_gain"][metric])
        assert block["verdict"]
        assert block["verdict"].endswith(" This is one seed: the intervals leave out how much seeds differ.")
    assert (
        report["students"]["small"]["description"] == "ensdistill.models.MLP"
    )  # where nothing is said of it
    assert report["models"] == report["students"]["small"]["models"]
    assert report["models"]["student"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert [member["name"] for member in report["members"]] == ["mlp", "gaussiannb"]
    assert sum(member["weight"]["mean"] for member in report["members"]) == pytest.approx(1)
    assert {"teachers", "cache", "direct", "distill"} <= set(report["timings_s"])
    page = html.unescape((finished_job / "report.html").read_text())
    assert report["verdict"].split(". ")[0] in page
    assert "<svg" in page
    assert {file.suffix for file in (finished_job / "figures").iterdir()} == {".png"}


def test_each_stage_is_a_command(tmp_path, finished_job):
    file, folder = write_job(tmp_path), tmp_path / "runs" / "tiny"
    seed = folder / "seed-0"
    assert "teachers" in succeed("teachers", file)
    assert sorted(p.name for p in seed.iterdir()) == ["teachers"]
    assert "cache build" in succeed("cache", "build", file)
    assert sorted(p.name for p in seed.iterdir()) == ["cache", "teachers"]
    teachers = stamps(seed / "teachers")
    succeed("distill", file)
    assert sorted(p.name for p in seed.iterdir()) == ["cache", "direct", "distill", "teachers"]
    assert not (folder / "report.json").exists()
    assert stamps(seed / "teachers") == teachers
    out = succeed("report", file)
    assert "Retained gain" in out
    assert str(folder / "report.html") in out.replace("\n", "")
    assert numbers(folder) == numbers(finished_job)
    assert trained(folder) == trained(finished_job)


OWN = '''
from dataclasses import dataclass

from torch import nn

from ensdistill.data import Digits, Split
from ensdistill.models import MLP


class Net(nn.Module):
    """The same layers, and the same random numbers for them, by another name."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = MLP(64, [width], 10)

    def forward(self, x):
        return self.layers(x)


@dataclass(frozen=True)
class Data:
    """Digits, from somewhere else."""

    rows: int = 100

    def split(self, seed: int) -> Split:
        return Digits(labelled=self.rows, pool=self.rows).split(seed)
'''


def test_own_classes_from_the_current_folder_on_two_workers(tmp_path, finished_job):
    # As a user does it: another process, in a folder with a module of the user's own. The numbers are those
    # of one worker.
    (tmp_path / "own_things.py").write_text(OWN)
    net = {"class_path": "own_things.Net", "init_args": {"width": 16}}
    change = {"data": {"class_path": "own_things.Data"}, "distill.students.wide.model": net}
    write_job(tmp_path, change | {"folder": "runs", "workers": 2})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "ensdistill", "run", "job.yaml", "--name", "own"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Retained gain" in done.stdout
    assert all(
        f"✓ seed 0 · {unit}" in done.stderr for unit in ("teachers", "cache", "direct small", "distill wide")
    )
    one, two = numbers(finished_job), numbers(tmp_path / "runs" / "own")
    assert two["dataset"]["name"] == "Data"
    two["dataset"]["name"] = "Digits"
    assert {key: two[key] for key in two if key != "students"} == {
        key: one[key] for key in one if key != "students"
    }
    for name in ("small", "wide"):
        for key in ("models", "gains", "retained_gain"):
            assert two["students"][name][key] == one["students"][name][key]


def test_own_arrays(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    np.save(
        tmp_path / "x.npy",
        (np.eye(3)[labels].repeat(4, 1) + generator.normal(0, 0.3, (240, 12))).astype(np.float32),
    )
    np.save(tmp_path / "y.npy", labels)
    arrays = {
        "inputs": str(tmp_path / "x.npy"),
        "labels": str(tmp_path / "y.npy"),
        "labelled": 60,
        "pool": 60,
    }
    net = {"class_path": "ensdistill.models.MLP", "init_args": {"inputs": 12, "hidden": [8], "outputs": 3}}
    change = {
        "data": {"class_path": "ensdistill.data.ArrayDataset", "init_args": arrays},
        "teachers.members.0.init_args.model": net,
    }
    change |= {f"distill.students.{name}.model": net for name in ("small", "wide")}
    file = write_job(tmp_path, change)
    out = succeed("run", file)
    assert "ArrayDataset: 60 labelled rows, 60 in the pool" in flat(out)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["dataset"]["test"] == 120
    assert report["models"]["ensemble"]["accuracy"]["mean"] > 0.9  # three clusters, far apart


def test_help_teaches():
    for words in (["--help"], ["-h"], ["help"]):
        out = succeed(*words)
        for command in (
            "run",
            "teachers",
            "cache build",
            "distill",
            "report",
            "cache info",
            "cache verify",
            "info",
        ):
            assert f"ensdistill {command}" in out
    status, out, _ = run()
    assert (status, "ensdistill run CONFIG" in out) == (2, True)
    out = flat(succeed("run", "--help"))
    for setting, explained in {
        "--seeds": "Everything is repeated this often",
        "--workers": "The numbers do not depend on it",
        "--distill.loss.temperature": "T from 1e-4 to 1e4, for the divergence",
        "--distill.loss.alpha": "Share of the divergence",
        "--teachers.folds": "out-of-fold predictions",
        "--cache.codec": "How a target is stored",
        "--cache.mixture_at": "Keep only the mixture, at this temperature, which has to be distill.loss.temperature",
        "--cache.views": "in epoch e the student sees version e mod views",
        "--cache.augment": "before the teachers and the student see them",
        "--cache.max_kl": "by more than so many nats in any row",
    }.items():
        assert setting in out
        assert explained in out


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        (["run", "--help"], "The whole job"),
        (["teachers", "--help"], "Writes seed-*/teachers/"),
        (["cache", "build", "-h"], "runs the ensemble over it once"),
        (["distill", "--help"], "usage: ensdistill distill CONFIG [--SETTING VALUE ...] Trains the students from the cache"),
        (["report", "--help"], "Judges the students on the test rows"),
        (["cache", "--help"], "build CONFIG [--SETTING VALUE ...] run the ensemble once"),
        (["cache", "info", "--help"], "Shows a target cache: records"),
        (["cache", "verify", "-h"], "checks every byte against the manifest"),
        (["info", "--help"], "the parts of it that run on this machine"),
        # What stands in lists and mappings, where --help can't know the names.
        (["run", "--help"], "--distill.students.NAME.optimization.learning_rate"),
        (["run", "--help"], "init_args of ensdistill.teachers.recipes.TorchMembers, a kind of members"),
        # And what a setting may be, all without a CONFIG.
        (["run", "--distill.students.help"], "--distill.students.NAME.description"),
        (["run", "--teachers.members.help"], "ensdistill.teachers.recipes.SklearnMembers"),
        (["run", "--teachers.members.help", "ensdistill.teachers.recipes.TorchMembers"], "checkpoint_every"),
        (["run", "--teachers.members.help=ensdistill.teachers.recipes.TorchMembers"], "checkpoint_every"),
        (["run", "--data.help"], "or of a class of your own with def split(self, seed: int) -> Split"),
        (["run", "--data.help", "Digits"], "labelled"),
        (["run", "--cache.augment.help"], "ensdistill.data.augmentation.ShiftImages"),
        (["run", "--cache.transfer.synthetic.help", "ensdistill.data.transfer.Munge"], "variance"),
    ],
)  # fmt: skip
def test_every_command_and_every_class_is_explained(words, tells):
    assert tells in flat(succeed(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--sedes.help"], "--sedes.help: there is no setting 'sedes'"),
        (["run", "--seeds.help"], "--seeds.help: expected a setting that names a class"),
        (
            ["run", "--data.help", "nowhere.Data"],
            "--data.help: nowhere.Data can't be imported: No module named 'nowhere'",
        ),
        (
            ["run", "--data.help", "Digit"],
            "--data.help: expected an import path, package.module.Class; got 'Digit'. Did you mean 'Digits'?",
        ),
    ],
)
def test_help_that_is_not_there(words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err


def test_config_comes_first(tmp_path):
    file = write_job(tmp_path)
    status, _, err = run("run", "--seeds", "1", file)
    assert (status, f"run: CONFIG comes first: ensdistill run {file} --seeds 1" in err) == (2, True)
    status, _, err = run("run", tmp_path)
    assert (
        status,
        f"run: CONFIG: {str(tmp_path)!r} is a folder; expected a YAML file, for example:" in err,
    ) == (2, True)


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


def test_version_and_info():
    from ensdistill import __version__
    from ensdistill.loss import ops

    assert succeed("--version") == f"ensdistill {__version__}\n"
    out = flat(succeed("info"))
    assert __version__ in out
    assert f"in use: {ops.instruction_set()}" in out
    assert "CUDA built" in out


def test_info_fits_a_terminal_of_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed("info").splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["ensdistill", "torch"]
    assert re.match(r" +built with [\w.+]+; the libraries serve [\d.]+ and later *$", lines[2])


def test_print_config_shows_what_would_run_and_can_be_run(tmp_path):
    file = write_job(tmp_path)
    out = succeed("run", file, "--distill.loss.temperature", "3", "--seeds", "2", "--print_config")
    settings = yaml.safe_load(out)
    assert settings["distill"]["loss"]["temperature"] == 3.0
    assert settings["distill"]["loss"]["alpha"] == 1.0  # a default that the file does not name
    assert settings["seeds"] == 2
    assert "temperature: 3.0" in succeed(
        "run", file, "--distill.loss.temperature", "3", "--print_config=skip_default"
    )
    assert "threads" in out
    assert "threads" not in succeed("run", file, "--print_config=skip_default")
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


def test_cache_info_and_verify(finished_job, tmp_path):
    folder = tmp_path / "targets"
    shutil.copytree(finished_job / "seed-0" / "cache" / "targets", folder)
    out = flat(succeed("cache", "info", folder))
    assert "260 of" in out
    assert "uint8: KL to the exact targets mean" in out
    assert "mlp (0." in out
    assert "gaussiannb (0." in out
    assert "260 records in 1 shards: every byte as written" in flat(succeed("cache", "verify", folder))
    shard = folder / "shard-00000.safetensors"
    blob = bytearray(shard.read_bytes())
    blob[-1] ^= 128
    shard.write_bytes(blob)
    status, out, err = run("cache", "verify", folder)
    assert (status, out) == (1, "")
    assert f"{shard}: the bytes are not those that were written (hash)" in err
    status, _, err = run("cache", "info", tmp_path / "nowhere")
    assert (status, f"{tmp_path / 'nowhere'}: no manifest.json" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu", "x.yaml"], "cache push, cache pull, info, bench; got 'rnu'. Did you mean 'run'?"),
        (["cache", "bild", "x.yaml"], "got 'cache bild'. Did you mean 'cache build'?"),
        (["cache"], "got 'cache'."),
        (["run"], "run: expected a CONFIG file, for example: ensdistill run examples/digits.yaml"),
        (["distill", "--seeds", "2"], "distill: expected a CONFIG file"),
        (["run", "no/such.yaml"], "run: CONFIG: there is no file 'no/such.yaml'"),
        (["run", "--config=no/such.yaml"], "run: CONFIG: there is no file 'no/such.yaml'"),
        (["cache", "info"], "the following arguments are required: FOLDER"),
        (["cache", "verify", "a", "b"], "unrecognized arguments: b"),
        (["info", "foo"], "info: expected no arguments; got 'foo'"),
    ],
)  # fmt: skip
def test_wrong_words(words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err


SMALL, MEMBER = "distill.students.small", "teachers.members.0.init_args"


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        # A name that nothing goes by, at every depth; the nearest one is suggested.
        ({"sedes": 2}, [], "sedes: there is no such setting; known: data, teachers, cache, distill, name, "),
        ({"sedes": 2}, [], "max_test_copies. Did you mean 'seeds'?"),
        (
            {"distill.loss.temprature": 2},
            [],
            "distill.loss.temprature: there is no such setting; known: temperature, ",
        ),
        ({f"{SMALL}.optimisation": {"steps": 3}}, [], "Did you mean 'optimization'?"),
        ({f"{SMALL}.optimization.stepz": 2}, [], "Did you mean 'steps'?"),
        (
            {f"{SMALL}.model.init_args.hiden": [2]},
            [],
            f"{SMALL}.model.init_args.hiden: there is no such setting; known: inputs, hidden, outputs, "
            "dropout, activation.",
        ),
        # Also where nothing is said by it.
        ({"cahce": {}}, [], "cahce: there is no such setting; known: data, teachers, cache,"),
        ({"teachers.fold": {}}, [], "Did you mean 'folds'?"),
        ({"distill.lable_smoothing": {}}, [], "Did you mean 'label_smoothing'?"),
        ({f"{SMALL}.optimization.stepz": None}, [], f"{SMALL}.optimization.stepz: there is no such setting"),
        (
            {f"{MEMBER}.model.init_args.widht": {}},
            [],
            f"{MEMBER}.model.init_args.widht: there is no such setting; known: inputs, ",
        ),
        (
            {"data.labelled": 100},
            [],
            "data.labelled: there is no such setting; known: class_path, init_args, dict_kwargs.",
        ),
        ({f"{MEMBER}.cuont": 2}, [], "Did you mean 'count'?"),
        ({"data.init_args.labeled": 2}, [], "Did you mean 'labelled'?"),
        ({"cache.transfer.synthetic.0.init_args.row": 2}, [], "Did you mean 'rows'?"),
        (
            {},
            ["--distill.loss.temprature", "2"],
            "--distill.loss.temprature: there is no such setting; known: temperature, alpha,",
        ),
        ({}, ["--distill.loss.temprature=2"], "Did you mean '--distill.loss.temperature'?"),
        ({}, ["--sedes", "2"], "Did you mean '--seeds'?"),
        ({}, ["--distil.temperature", "2"], "Did you mean '--distill'?"),
        ({}, ["--data.labeled", "30"], "Did you mean '--data.init_args.labelled'?"),
        ({"sedes": 2}, ["--print_config"], "Did you mean 'seeds'?"),
        ({}, [f"--{SMALL}.optimization.stepz", "2"], f"Did you mean '--{SMALL}.optimization.steps'?"),
        (
            {},
            ["--print_config=bogus"],
            "--print_config: invalid choice: 'bogus' (choose from 'all', 'skip_default')",
        ),
        # A class that can't be imported, or is something else.
        (
            {f"{SMALL}.model.class_path": "ensdistill.models.MPL"},
            [],
            f"{SMALL}.model.class_path: ensdistill.models has no 'MPL'.",
        ),
        ({f"{SMALL}.model.class_path": "ensdistill.models.MPL"}, [], "Did you mean 'MLP'?"),
        ({f"{SMALL}.model.class_path": "nowhere.Net"}, [], "No module named 'nowhere'"),
        (
            {f"{SMALL}.model": {"class_path": "ensdistill.data.Digits"}},
            [],
            f"{SMALL}.model.class_path: ensdistill.data.Digits is no Module",
        ),
        (
            {"distill.students.wide.model.class_path": "ensdistill.models.MPL"},
            [],
            "students.wide.model.class_path: ensdistill.models has no 'MPL'.",
        ),
        (
            {f"{SMALL}.model": "MLP3"},
            [],
            f"{SMALL}.model: expected an import path, package.module.Class; got 'MLP3'. Did you mean 'MLP'?",
        ),
        (
            {f"{SMALL}.model.class_path": 3},
            [],
            f"{SMALL}.model.class_path: expected an import path, package.module.Class; got 3",
        ),
        (
            {"data": {"class_path": "ensdistill.data.ArrayDataset"}},
            [],
            "data.init_args.labelled: expected a value, because it has no default; got nothing",
        ),
        (
            {"distill.augment": {"class_path": "ensdistill.data.Digits"}},
            [],
            "distill.augment.class_path: ensdistill.data.Digits is no Augmentation: expected a class with "
            "def draw(",
        ),
        ({"data.class_path": "ensdistill.data.Digit"}, [], "Did you mean 'Digits'?"),
        (
            {"data": {"class_path": "ensdistill.models.MLP"}},
            [],
            "data.class_path: ensdistill.models.MLP is no Dataset: expected a class with def split(self, "
            "seed: int) -> Split",
        ),
        (
            {"teachers.members.1.init_args.estimator.class_path": "sklearn.naive_bayes.GausianNB"},
            [],
            "Did you mean 'GaussianNB'?",
        ),
        # Values of another kind, or out of range.
        ({"seeds": "two"}, [], "seeds: expected a whole number; got 'two'"),
        ({"seeds": None}, [], "seeds: expected a whole number; got nothing"),
        ({"teachers": 3}, [], "teachers: expected a mapping of names to values; got 3"),
        ({"teachers.members": {"a": 1}}, [], "teachers.members: expected a list; got {'a': 1}"),
        ({"cache.transfer.pool": "maybe"}, [], "cache.transfer.pool: expected true or false; got 'maybe'"),
        (
            {f"{MEMBER}.optimization": 3},
            [],
            f"{MEMBER}.optimization: expected a mapping of names to values; got 3",
        ),
        (
            {"distill.students.wide.optimization.schedule": "cosin"},
            [],
            "schedule: expected one of one_cycle, cosine, constant; got 'cosin'. Did you mean 'cosine'?",
        ),
        ({"distill.loss.temperature": "hot"}, [], "distill.loss.temperature: expected a number; got 'hot'"),
        (
            {"distill.loss.temperature": 0},
            [],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got 0.0",
        ),
        (
            {},
            ["--distill.loss.temperature", "-1"],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got -1.0",
        ),
        (
            {},
            ["--distill.loss.temperature", "nan"],
            "--distill.loss.temperature: expected a number; got 'nan'",
        ),
        (
            {"distill.loss.temperature": float("nan")},
            [],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got nan",
        ),
        ({"distill.loss.alpha": 1.5}, [], "distill.loss.alpha: expected a number from 0 to 1; got 1.5"),
        ({}, ["--distill.loss.alpha=-0.5"], "distill.loss.alpha: expected a number from 0 to 1; got -0.5"),
        (
            {"cache.codec": "uint9"},
            [],
            "cache.codec: expected one of uint8, fp16, bf16, fp32, topk-N, counts-N (N a number, for counts "
            "at",
        ),
        ({"distill.loss.divergence": "kl"}, [], "distill.loss.divergence: expected"),
        (
            {"distill.loss.reduction": "sum"},
            [],
            "distill.loss.reduction: expected 'mean', the only one that a trainer has; got 'sum'",
        ),
        (
            {"distill.temperature": 2},
            [],
            "distill.temperature: there is no such setting; known: students, loss, ",
        ),
        (
            {"cache.codec": "topk-3"},
            [],
            "cache.mixture_at: expected a temperature, that of distill.loss.temperature, because codec "
            "topk-3",
        ),
        ({"cache.mixture_at": 0}, [], "cache.mixture_at: expected a number from 0.0001 to 10000; got 0.0"),
        (
            {"cache.mixture_at": 2},
            [],
            "cache.mixture_at: expected distill.loss.temperature, 1.0, because a mixture at one temperature",
        ),
        (
            {"cache.mixture_at": 1},
            ["--distill.loss.temperature", "3"],
            "cache.mixture_at: expected distill.loss.temperature, 3.0, because",
        ),
        ({"cache.views": 0}, [], "cache.views: expected at least 1; got 0"),
        (
            {"cache.views": 2},
            [],
            "cache.augment: expected an augmentation, because 2 views without one would all be alike; got "
            "none",
        ),
        (
            {"cache.augment": {"class_path": "ensdistill.data.Digits"}},
            [],
            "cache.augment.class_path: ensdistill.data.Digits is no Augmentation: expected a class with ",
        ),
        ({"cache.max_kl": -1}, [], "cache.max_kl: expected a finite number of at least 0, in nats; got -1.0"),
        ({"cache.max_kl": "little"}, [], "cache.max_kl: expected a number; got 'little'"),
        (
            {"cache.view": 2},
            [],
            "cache.view: there is no such setting; known: transfer, codec, mixture_at, views, augment, "
            "max_kl.",
        ),
        ({"distill.students": {}}, [], "distill.students: expected at least one; got none"),
        (
            {"distill.students": {"../small": {"model": mlp(8)}}},
            [],
            "distill.students: expected a name that can be a folder's; got '../",
        ),
        (
            {f"{SMALL}.direct": {"steps": 20, "batch_size": 32}},
            [],
            "direct.steps: expected the student's, 30, for a fair comparison;",
        ),
        (
            {f"{SMALL}.optimization.learning_rate": -1},
            [],
            f"{SMALL}.optimization.learning_rate: expected a positive number; got -1",
        ),
        (
            {},
            [f"--{SMALL}.optimization.steps", "0"],
            f"{SMALL}.optimization.steps: expected at least 1; got 0",
        ),
        ({f"{MEMBER}.optimization.steps": 0}, [], f"{MEMBER}.optimization.steps: expected at least 1; got 0"),
        ({"cache.transfer.synthetic.0.init_args.rows": 0}, [], "mixup: rows: expected at least 1; got 0"),
        ({"teachers.members": []}, [], "teachers.members: expected at least one; got none"),
        ({"name": "a/b"}, [], "name: expected a name that can be a folder's; got 'a/b'"),
        ({"folder": 3}, [], "folder: expected a path; got 3"),
        (
            {f"{SMALL}.model.init_args.hidden": 8},
            [],
            f"{SMALL}.model.init_args.hidden: expected a list; got 8",
        ),
        (
            {f"{SMALL}.model.init_args.hidden": "8"},
            [],
            f"{SMALL}.model.init_args.hidden: expected a list; got '8'",
        ),
        ({"distill.students": {3: {}}}, [], "distill.students.3: expected text; got 3"),
        (
            {},
            ["--distill.mixed_precision", "maybe"],
            "distill.mixed_precision: expected one of no, bf16, fp16; got 'maybe'",
        ),
        ({"seeds": "3"}, [], "seeds: expected a whole number; got '3'"),  # text in the file stays text
        ({"seeds": 2.0}, [], "seeds: expected a whole number; got 2.0"),
        ({"seeds": True}, [], "seeds: expected a whole number; got True"),
        ({"name": 3}, [], "name: expected text; got 3"),
        (
            {f"{SMALL}.model.init_args.hidden": [8, "x"]},
            [],
            f"{SMALL}.model.init_args.hidden.1: expected a whole number; got 'x'",
        ),
        (
            {"seeds": "two", "workers": "x"},
            [],
            "seeds: expected a whole number; got 'two'\nworkers: expected a whole number; got 'x'",
        ),
        ({}, ["x.yaml"], "CONFIG: expected --SETTING VALUE; got 'x.yaml'"),
        ({}, ["--distill.loss", "[1,"], "--distill.loss, line 1, column 4: not YAML"),
        ({}, ["--seeds", "0"], "seeds: expected at least 1; got 0"),
        ({}, ["--seeds"], "--seeds: expected one argument"),
    ],
)
def test_wrong_settings(tmp_path, change, words, message):
    status, out, err = run("run", write_job(tmp_path, change), *words)
    assert (status, out) == (2, "")
    assert message in err
    assert not any(inside in err for inside in ("Traceback", "<class", "Namespace(", "typing.", "Parser key"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: [1,\n b: 2",
            "bad.yaml, line 2, column 6: not YAML (expected ',' or ']', but got '<stream end>')",
        ),
        (
            "- 1\n",
            "bad.yaml: expected settings (data, teachers, distill, ...), each `name: value`; got a list",
        ),
        ("", "bad.yaml: expected settings (data, teachers, distill, ...), each `name: value`; got nothing"),
        ("a: \0", "bad.yaml: not YAML (unacceptable character #x0000"),
        (
            "seeds: 3\n",
            "data: expected a value, because it has no default; got nothing\nteachers.members: expected a "
            "value",
        ),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    status, _, err = run("run", tmp_path / "bad.yaml")
    assert status == 2
    assert message in err


def test_a_traceback_where_it_is_asked_for(tmp_path, monkeypatch):
    file = write_job(tmp_path, {f"{SMALL}.optimization.learning_rate": 1e30})
    monkeypatch.setenv("ENSDISTILL_TRACEBACK", "1")
    status, _, err = run("distill", file)
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert "student/trainer.py" in err  # where the worker raised it, not where its message arrived
    assert "seed-0/teachers" in fingerprints(tmp_path / "runs" / "tiny")  # what was finished is kept


def test_an_errors_notes_are_shown(monkeypatch, capsys):
    def fail():
        error = ArithmeticError("it broke")
        error.add_note("in the training of b")
        raise error

    monkeypatch.setattr("ensdistill.cli.main._info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("ensdistill: it broke\nin the training of b\n")
