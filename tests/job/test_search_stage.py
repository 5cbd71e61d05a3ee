"""A job's student with a goal in place of a model: the stage ``search``, and what comes after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
from job_helpers import JOB, OPTIMIZATION, run, succeed, write_job

from ensdistill.cli.settings import load_config, load_job
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.searching import _remove, _without_search
from ensdistill.job.unit import Unit
from ensdistill.student.search.latency import Latency

pytest.importorskip("optuna")
SEARCHED = {
    "trials": 1,
    "data.init_args.pool": 850,
    "distill.students": {"small": {"keep": 0.8, "families": ["mlp"]}},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    search = "ensdistill.student.search"
    with (
        mock.patch(f"{search}.ordinary.ordinary_steps", return_value=96),
        mock.patch(f"{search}.ladders.latency_of", return_value=Latency(2e-5, "none")),
    ):
        file = write_job(folder, SEARCHED)
        shown = succeed("tune", file)
        yield file, shown, succeed("run", file, draws=True)


def unit_folder(file: Path) -> Path:
    return file.parent / "runs" / "tiny" / "seed-0" / "search" / "small"


def test_tune_shows_the_frontier_and_leaves_no_journal(job):
    file, shown, _ = job
    assert "On 203 validation rows, 0 of them with a label" in shown
    assert "Of the 203 rows that judged, 0 have a label and 0 are synthetic." in " ".join(shown.split())
    assert "direct, mlp/" in shown
    assert sorted(p.name for p in unit_folder(file).iterdir()) == [
        "result.json",
        "stage.json",
        "student.yaml",
    ]


def test_run_trains_what_tune_has_found_and_reports_the_search(job):
    file, _, report = job
    found = json.loads((unit_folder(file) / "result.json").read_text())
    name = found["chosen"] or found["nearest"]
    point = next(one for one in found["points"] if one["candidate"] == name)
    folder = RunFolder(load_config(["--config", str(file)]))
    assert folder.is_finished(Unit("search", 0, "small"))
    assert folder.is_finished(Unit("distill", 0, "small"))
    student = folder.student("small", 0)
    assert student.network.keywords["hidden"] == point["section"]["model"]["init_args"]["hidden"]
    saved = json.loads((folder.of(Unit("distill", 0, "small")) / "student" / "member.json").read_text())
    assert "MLP" in json.dumps(saved)
    assert "The search for small" in report
    assert (folder.path / "figures" / "search_small.png").stat().st_size > 1000
    assert "The search for small" in (folder.path / "report.html").read_text()
    assert found["verdict"].split(":")[0] in " ".join(report.split())


def test_the_found_yaml_after_the_jobs_own_needs_no_search(job):
    own = ["--config", str(job[0])]
    config = load_config([*own, "--config", str(unit_folder(job[0]) / "student.yaml"), "--name", "other"])
    assert (config.searched, config.trials, config.name) == ([], None, "other")
    found, student = RunFolder(load_config(own)).student("small", 0), config.distill.students["small"]
    for name in ("optimization", "direct", "loss", "ema", "rows"):
        assert getattr(student, name) == getattr(found, name), name
    assert student.network.keywords["hidden"] == found.network.keywords["hidden"]


def test_found_yaml_keeps_the_budget_of_other_searches_and_what_an_estimator_takes(tmp_path):
    goals = {"keep": 0.8, "max_bytes": "20kB", "families": ["boosted"], "checkpoint_every": 64}
    change = {"distill.students": {"small": goals, "other": {"keep": 0.9}}}
    own = ["--config", str(write_job(tmp_path, SEARCHED | change))]
    forest = "sklearn.ensemble.RandomForestClassifier"
    sections = {
        "small": {"description": "forest", "estimator": {"class_path": forest}, "preprocess": None},
        "other": {"description": "mlp", "model": JOB["distill"]["students"]["small"]["model"]},
    }
    for name, section in sections.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(_without_search(load_config(own), name, section))
        own += ["--config", str(file)]
        if name == "small":
            assert load_config(own).searched == ["other"]
            assert load_config(own).trials == 1
    config = load_config(own)
    assert (config.searched, config.trials) == ([], None)


def test_another_goal_makes_search_and_student_stale(job):
    words = ["--config", str(job[0])]
    same, other = (
        RunFolder(load_config([*words, *more])) for more in ([], ["--distill.students.small.keep", "0.7"])
    )
    assert same.is_finished(Unit("distill", 0, "small"))
    assert not other.is_finished(Unit("search", 0, "small"))
    assert not other.is_finished(Unit("distill", 0, "small"))
    assert other.is_finished(Unit("cache", 0))


LABELLED = SEARCHED | {"data.init_args": {"labelled": 1200, "pool": 0}}


def test_labelled_rows_that_judge_are_in_no_part_of_the_trials_split(tmp_path):
    config = load_config(["--config", str(write_job(tmp_path, LABELLED))])
    whole, split, held = config.split(0), config.trial().split(0), config.validation(0)
    assert (len(whole.labelled), len(split.labelled), len(held)) == (1200, 960, 240)
    assert not set(held.uids) & ({*split.labelled.uids} | {*split.test.uids} | {*split.pool.uids})
    assert {*held.uids, *split.labelled.uids} == {*whole.labelled.uids}
    without = load_config(["--config", str(write_job(tmp_path, LABELLED | {"refit": False}))])
    assert len(without.split(0).labelled) == 960
    plain = load_config(
        ["--config", str(write_job(tmp_path, {"data.init_args": {"labelled": 1200, "pool": 0}}))]
    )
    assert len(plain.split(0).labelled) == 1200
    assert plain.validation(0) is None


def units_of(file: Path, last: str) -> list[str]:
    return [str(unit) for unit in RunFolder(load_config(["--config", str(file)])).units(last)]


def test_teachers_train_again_with_the_rows_that_judged(tmp_path):
    search = "ensdistill.student.search"
    with (
        mock.patch(f"{search}.ordinary.ordinary_steps", return_value=64),
        mock.patch(f"{search}.ladders.latency_of", return_value=Latency(2e-5, "none")),
    ):
        file = write_job(tmp_path, LABELLED)
        shown = succeed("tune", file)
        assert "On 240 validation rows, 240 of them with a label" in shown
        folder = RunFolder(load_config(["--config", str(file)]))
        assert not (folder.path / "seed-0" / "teachers").exists()
        report = succeed("run", file)
    trial, whole = (
        json.loads((path / "seed-0" / "cache" / "stage.json").read_text())["origin"]
        for path in (folder.trial.path, folder.path)
    )
    assert (trial[0], whole[0]) == (["labelled", 960], ["labelled", 1200])
    assert folder.trial.path == folder.path / "trial"
    seconds = json.loads((folder.path / "report.json").read_text())["timings_s"]
    assert {"trial teachers", "trial cache", "teachers", "cache", "search"} <= set(seconds)
    assert "The search for small" in report
    assert all(map(folder.is_finished, folder.units("report")))


def test_a_trial_is_done_where_labelled_rows_judge_and_refit_is_set(tmp_path):
    trial = ["seed 0 · trial teachers", "seed 0 · trial cache"]
    own = ["seed 0 · teachers", "seed 0 · cache"]
    search = ["seed 0 · search small"]
    rest = ["seed 0 · distill small", "seed 0 · direct small"]
    labelled = write_job(tmp_path, LABELLED)
    assert units_of(labelled, "search") == [*trial, *search]
    assert units_of(labelled, "report") == [*trial, *own, *search, *rest]
    assert units_of(labelled, "cache") == own
    for change in (SEARCHED, LABELLED | {"refit": False}):
        file = write_job(tmp_path, change)
        assert units_of(file, "search") == [*own, *search]
        assert units_of(file, "report") == [*own, *search, *rest]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill.students": {"small": {"keep": 2}}}, "keep: expected a share in"),
        (
            {"distill.students": {"small": JOB["distill"]["students"]["small"] | {"keep": 0.9}}},
            "model: expected none beside keep or max_",
        ),
        (
            {"distill.students": {"small": {**JOB["distill"]["students"]["small"], "families": ["mlp"]}}},
            "families: expected keep or max_",
        ),
        (
            {"distill.students": {"small": {"keep": 0.9, "compile": True, "ema": 0.99}}},
            "leave out either keep and max_* or ema and compile (ema: null, compile: false)",
        ),
        ({"distill.students": {"small": {}}}, "model: expected a model or an estimator"),
        ({"minutes": 0}, "minutes: expected a positive number"),
        ({"minutes": 3}, "minutes: expected none where no student is searched for; got 3"),
        ({"trials": 3}, "trials: expected none where no student is searched for; got 3"),
        (SEARCHED | {"minutes": 3, "trials": 4}, "minutes: expected none beside trials"),
        (SEARCHED | {"data.init_args.pool": 100, "cache.transfer": {}}, "a search needs 203 rows that judge"),
        (
            SEARCHED | {"data.init_args.pool": 100},
            "a pool of 100 and 60 synthetic rows: have 1015 labelled rows",
        ),
        (
            SEARCHED | {"distill.students": {"small": {"max_bytes": "1kB", "families": ["mlp"]}}},
            "distill.students.small.max_bytes: expected at least 4,840 bytes (mlp/16); got 1,000 bytes. Of mlp, "
            "the nearest candidate is mlp/16",
        ),
        (
            SEARCHED | {"distill.students": {"small": {"max_parameters": 50, "max_latency": "1us"}}},
            "distill.students.small.max_parameters: expected at least",
        ),
        (
            SEARCHED | {"distill.students": {"small": {"keep": 0.9, "families": ["ngrams"]}}},
            "distill.students.small.families: 'ngrams' does not fit these samples",
        ),
    ],
)
def test_wrong_searches_are_refused_before_any_work(tmp_path, change, message):
    status, _, err = run("tune", write_job(tmp_path, change))
    assert status in (1, 2)
    assert message in err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimization", OPTIMIZATION),
        ("direct", OPTIMIZATION),
        ("preprocess", None),
        ("validation", {"share": 0.2}),
        ("ema", 0.99),
        ("weights", "/nowhere.safetensors"),
        ("compile", True),
        ("recompute_modules", ["*"]),
        ("rows", {"synthetic": 0.5}),
        ("loss", {"temperature": 2.0}),
        ("variance", True),
        ("generations", 2),
    ],
)
def test_settings_that_a_search_chooses_are_refused_beside_a_goal(tmp_path, name, value):
    students = {"small": {"keep": 0.9, name: value}}
    file = write_job(tmp_path, SEARCHED | {"distill.students": students})
    with pytest.raises(ValueError, match=f"small.{name}: expected none beside keep or max_") as error:
        load_config(["--config", str(file)])
    remedy = str(error.value).rpartition(f"({name}: ")[2].removesuffix(")")
    assert load_config(["--config", str(file), f"--distill.students.small.{name}", remedy]).searched


def test_settings_that_only_watch_and_defaults_stand_beside_a_goal(tmp_path):
    watching = {"trackers": ["tensorboard"], "checkpoint_every": 64, "keep_last": 2, "description": "mine"}
    defaults = {"optimization": {"steps": "auto"}, "direct": None, "preprocess": "auto", "compile": False}
    students = {"small": {"keep": 0.9, **watching, **defaults}}
    file = write_job(tmp_path, SEARCHED | {"distill.students": students})
    config, written = load_job(["--config", str(file)])
    file.write_text(written)  # with all defaults, as a run keeps it
    for one in (config, load_config(["--config", str(file)])):
        assert one.searched == ["small"]
        assert one.distill.students["small"].checkpoint_every == 64


def test_tune_without_a_goal_names_the_remedy(tmp_path):
    status, _, err = run("tune", write_job(tmp_path))
    assert status == 2
    assert "--distill.students.NAME.keep 0.95" in err
    assert load_config(
        ["--config", str(tmp_path / "job.yaml"), "--distill.students.new.keep", "0.95"]
    ).searched


def test_data_with_a_goal_have_their_student_searched_for(tmp_path):
    from ensdistill.cli.starting import start

    table = tmp_path / "table.csv"
    rows = [f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(60)]
    table.write_text("\n".join(["x,y,target", *rows]))
    found, rest = start(
        [str(table), "--target", "target", "--keep", "0.9", "--max_latency=50us", "--seeds", "1"]
    )
    assert rest == ["--seeds", "1"]
    assert found.settings["distill"]["students"] == {"student": {"keep": 0.9, "max_latency": "50us"}}
    assert ("students", "searched for: keep 0.9, max_latency 50us") in found.facts
    status, _, err = run("tune", table, "--target", "target", "--keep", "2")
    assert status == 2
    assert "keep: expected a share in (0, 1]" in err


def test_a_journal_that_a_late_helper_still_writes_into_is_removed(tmp_path):
    journal, rounds = tmp_path / "journal", iter(range(3))
    real = shutil.rmtree

    def disturbed(folder: Path, ignore_errors: bool = False) -> None:
        real(folder, ignore_errors)
        if next(rounds, None) is not None:
            (folder / "logits").mkdir(parents=True)

    journal.mkdir()
    with mock.patch("ensdistill.job.searching.shutil.rmtree", disturbed):
        _remove(journal)
    assert not journal.exists()
