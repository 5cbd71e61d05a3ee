"""The texts of ``--help``."""

from __future__ import annotations

import re

import pytest
from job_helpers import flat, run, succeed


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
        "--cache.codec": '"uint8", "fp16", "bf16" and "fp32" hold the logits of every member, in 8, 16, 16 and 32 bits',
        "--config": "Another file of settings",
        "--print_config": "Print the settings, defaults included, as YAML",
        "--SETTING.help": "List the classes that a setting may name",
        "--cache.mixture_at": "Keep only the mixture, at this temperature, which has to be distill.loss.temperature",
        "--cache.views": "in epoch e the student sees version e mod views",
        "--cache.augment": "before the teachers and the student see them",
        "--cache.max_kl": "by more than so many nats in any row",
    }.items():
        assert setting in out
        assert explained in out


@pytest.mark.parametrize(
    ("words", "text"),
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
        # Settings within lists and mappings, whose names --help can't list.
        (["run", "--help"], "--distill.students.NAME.optimization.learning_rate"),
        (["run", "--help"], "init_args of ensdistill.teachers.recipes.TorchMembers, a kind of members"),
        # The classes that a setting may name, without a CONFIG.
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
def test_every_command_and_every_class_is_explained(words, text):
    assert text in flat(succeed(*words))


def test_data_sets_alone_are_listed_as_such():
    listed = succeed("run", "--data.help")
    for name in ("Table", "Digits", "Items", "ArrayDataset"):
        assert re.search(rf"^  ensdistill\.data\.\S*{name}$", listed, re.M)
    assert "Partition" not in listed
    assert "Diversity" in succeed("run", "--cache.transfer.synthetic.help")  # it takes the ensemble too


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


def test_every_setting_has_a_type_a_default_and_a_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")  # each setting on one line
    out = succeed("run", "--help").partition("\nsettings:\n")[2]
    out = re.sub(r"\n(  \S+)\n +", r"\n\1 ", out)  # the text of a long name is below it
    settings = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert len(settings) > 80
    for name, text in settings:
        assert re.match(r".+?; (required|default .+?)\. \S", text), name
    assert not re.search(r"``|:\w+:`|\*\w|or a class of;|; default None|_InFolder", out)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["init", "--help"], ["compare", "--help"], ["completion", "--help"]]
    + [["cache", "--help"], ["info", "--help"], ["bench", "--help"], ["cache", "verify", "--help"]]
    + [[*verb.split(), "--help"] for verb in ("run", "teachers", "cache build", "distill", "report")],
)
def test_help_fits_a_terminal_of_eighty_columns(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, succeed(*words).splitlines())) <= 80
