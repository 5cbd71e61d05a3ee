"""The pages' Python runs, their settings are read, and their commands exist."""

import re
import shlex
import shutil
import sys
from dataclasses import fields
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from docs_blocks import ROOT, Encoded, blocks, run, setting
from job_helpers import JOB

from ensdistill import TargetCache, cache_targets
from ensdistill.cli import cache
from ensdistill.cli.classes import parse
from ensdistill.cli.completion import options_of
from ensdistill.cli.settings import load_config
from ensdistill.cli.usage import CACHE_COMMANDS, COMMANDS
from ensdistill.job.config import Config
from ensdistill.job.shared import SharedConfig
from ensdistill.models import MLP
from ensdistill.student.search.latency import Latency

PAGES = sorted(page.stem for page in (ROOT / "docs").glob("*.md"))
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "penguins.csv", "examples")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        "cache",
        "loss",
        "methods",
        "research",
        "roofline",
        slow("shared"),
        slow("shrink"),
        "texts",
        "tokens",
        "torch-models",
        slow("fitted"),
        slow("teachers"),
    ],
)
def test_a_page_runs_from_top_to_bottom(page, folder):
    names = run(page, blocks(page, "python"), {"__name__": "__main__"}, **{"steps=300": "steps=60"})
    if page == "fitted":
        assert (
            names["student"](torch.from_numpy(names["x"][1400:])).argmax(1).numpy() == names["truth"]
        ).mean() > 0.9
        assert {path.name for path in folder.joinpath("models").iterdir()} == {"forest.skops", "booster.ubj"}
    if page == "texts":
        assert 0.5 < names["agreement"] <= 1
        assert {path.name for path in folder.joinpath("small-bert").iterdir()} >= {"model.safetensors"}
    if page == "torch-models":
        assert (names["answers"] == names["split"].test.labels).mean() > 0.4
        assert folder.joinpath("student", "member.json").is_file()


@pytest.mark.parametrize("page", ["checkpoints", "sources", "training", "trees", "validation", "watching"])
def test_the_fragments_of_a_page_run(page, folder):
    names = setting(folder)
    if page == "training":
        names["factory"] = Encoded
    quick = {
        "20_000": "96",
        "steps=2000, batch_size=256": "steps=64, batch_size=50",
        "n_estimators=400": "n_estimators=12",
    }
    # Before its best weights a training has nothing to choose from: 96 steps have three evaluations.
    run(page, blocks(page, "python"), names, **quick, **{"every=500": "every=32"})
    if page in ("checkpoints", "sources", "training"):
        assert names["trained"].losses[-1] < names["trained"].losses[0]
    if page == "checkpoints":
        assert (folder / "training" / "best.safetensors").is_file()
    if page == "sources":
        assert len(names["students"]) == 4
    if page == "trees":
        assert (folder / "booster").is_dir()
        assert "12 rounds" in names["fitted"].way
    if page == "validation":
        assert "kl on validation" in str(names["trained"].choice)


@pytest.mark.slow
def test_numbers_are_found(folder):
    names = run("numbers", blocks("numbers", "python"), setting(folder))
    assert "learning_rate" in str(names["trained"].automatic)


@pytest.mark.slow
def test_a_search_runs(folder):
    search = "ensdistill.student.search"
    names = setting(folder)
    with (
        mock.patch(f"{search}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{search}.ladders.latency_of", return_value=Latency(2e-5, "none")),
    ):
        run("search", blocks("search", "python"), names, **{"minutes=3": "trials=2, families=['mlp']"})
    assert "keep" not in names["result"].yaml("small")


def test_the_script_for_many_processes_runs_as_one(folder):
    names = run(
        "scaling", blocks("scaling", "python")[:1], {"__name__": "__main__"}, **{"steps=200": "steps=64"}
    )
    saved = torch.load("student.pt", weights_only=True)
    assert all(torch.equal(saved[name], one) for name, one in names["student"].state_dict().items())


def test_a_cache_at_a_url_is_read_as_needed(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "copies"))
    names, (_, source) = setting(folder), blocks("scaling", "python")
    run("scaling", [source], names, **{"s3://bucket/targets": (folder / "cache").as_uri()})
    assert names["trained"].losses[-1] < names["trained"].losses[0]


@pytest.mark.parametrize("codec", ["fp32", "uint8"])
def test_the_format_is_read_by_the_program_of_its_page(codec, folder):
    (source,) = blocks("cache-format", "python")
    names = run("cache-format", [source], {})
    base = setting(folder)
    masked = MLP(64, [], 10)
    with torch.no_grad():
        masked[-1].bias[3] = -1e4  # too deep for a code
    ensemble = type(base["ensemble"]).from_members([*base["ensemble"].members, masked])
    cache_targets(ensemble, base["rows"], "targets", codec=codec, shard_rows=32)
    stored = TargetCache.open("targets")
    manifest, logits = names["read_cache"]("targets")
    assert logits.shape == (1, 100, 3, 10)
    np.testing.assert_array_equal(logits[0].swapaxes(0, 1), stored.gather_logits(stored.uids))
    assert np.isneginf(logits).any() == (codec == "uint8")
    shard = folder / "targets" / manifest["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(AssertionError, match="shard-00001"):
        names["read_cache"]("targets")


def test_the_member_of_the_page_is_saved_and_loaded(folder, monkeypatch):
    from ensdistill import Ensemble

    (source,) = (one for one in blocks("extending", "python") if one.startswith("# my_member.py"))
    (folder / "my_member.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    module = __import__("my_member")
    inputs = np.random.default_rng(0).normal(size=(5, 2))
    ensemble = Ensemble.from_members([module.Nearest(np.eye(2), classes=("a", "b")), MLP(2, [], 2)][:1])
    ensemble.save("ensemble")
    with pytest.raises(ValueError, match=r"my_member\.Nearest"):
        Ensemble.load("ensemble")
    again = Ensemble.load("ensemble", trusted=["my_member.Nearest"])
    np.testing.assert_array_equal(again.predict_proba(inputs), ensemble.predict_proba(inputs))
    sys.modules.pop("my_member")


def test_the_data_set_of_the_page_is_divided(folder):
    (source,) = (one for one in blocks("extending", "python") if one.startswith("# my_data.py"))
    split = run("extending", [source], {"__name__": "docs_blocks"})["Moons"]().split(seed=3)
    assert [len(part) for part in (split.labelled, split.pool, split.test)] == [100, 300, 600]


YAML = [(page, number) for page in PAGES for number in range(len(blocks(page, "yaml")))]


@pytest.mark.parametrize(("page", "number"), YAML)
def test_settings_are_read(page, number, folder, monkeypatch):
    text = blocks(page, "yaml")[number]
    sources = {"my_codec": ("extending", "# my_codec.py"), "my_package": ("watching", "from ensdistill")}
    for name, (other, start) in sources.items():
        if f"{name}." in text:
            (source,) = (one for one in blocks(other, "python") if one.startswith(start))
            (folder / f"{name}.py").write_text(source.partition("\n\n\ntrainer =")[0])
            monkeypatch.syspath_prepend(folder)
            monkeypatch.setitem(sys.modules, name, None)
            sys.modules.pop(name)
    settings = yaml.safe_load(text)
    if "sets" in settings:
        assert all(parse(SharedConfig, settings).sets[name].weight > 0 for name in settings["sets"])
        return
    if "data" in settings:
        assert parse(Config, settings).teachers.members
        return
    (folder / "pretrained.safetensors").touch()
    settings = {**JOB, **settings}
    students = settings["distill"].get("students")
    settings["distill"] = {**settings["distill"], "students": students or JOB["distill"]["students"]}
    for one in students.values() if students else ():
        one.pop("trackers", None)  # their packages are optional
    (folder / "job.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    config = load_config(["--config", "job.yaml"])
    assert list(config.distill.students) == list(settings["distill"]["students"])


def commands():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for part in line.split(" | "):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["ensdistill"]:
                        yield page, words[1:]


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(*one, id=f"{one[0]}-{' '.join(one[1])}"[:60]) for one in commands()]
)
def test_commands_and_their_options_exist(page, words):
    if words[0].startswith("runs/"):
        return
    assert words[0] in COMMANDS
    if words[0] == "cache":
        assert words[1] in CACHE_COMMANDS
        cache.parsers()[words[1]].parse_args(words[2:])
        return
    known = {name for found in options_of().values() for name in found} | {"--help"}
    for option in re.findall(r"(?<=\s)--[a-z0-9_-]+(?:\.[a-z_.]+)?", " " + " ".join(words)):
        name = option.split(".")[0].removeprefix("--")
        assert option in known or name in {one.name for one in fields(Config)}, option
