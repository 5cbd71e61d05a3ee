"""The quality benchmark: its judgement on models whose gains are known, its data sets, and a small run."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from sklearn.linear_model import Ridge

from benchmarks.quality import command, jobs, judgement, peers, picture, rule, times
from benchmarks.quality.command import goals_table, main, table
from benchmarks.quality.peers import PEERS, available
from benchmarks.quality.sets import SETS, Drawn, content
from benchmarks.quality.torchdistill_script import WithoutLabels
from benchmarks.teachers.data import Missing
from ensdistill.cli.main import main as ensdistill
from ensdistill.data import Rows, Split
from ensdistill.data.tasks import task_of_labels
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import CNN, MLP
from ensdistill.report.results import KINDS
from ensdistill.student.retention import NAMES, Features, RetentionRule
from ensdistill.teachers import Ensemble

ROWS, SEEDS = 400, 3
ABOUT = {
    "set": "digits",
    "regime": "all",
    "with_pool": False,
    "warned": False,
    "times_smaller": 3.0,
    "times_faster": 9.0,
}


def probabilities(right: float, labels: np.ndarray, classes: int = 4) -> np.ndarray:
    """Probability ``right`` for each label, and the rest in equal parts."""
    made = np.full((len(labels), classes), (1 - right) / (classes - 1))
    made[np.arange(len(labels)), labels] = right
    return made


@pytest.fixture
def models():
    random = np.random.default_rng(0)
    labels = [random.integers(4, size=ROWS) for _ in range(SEEDS)]
    right = dict.fromkeys(KINDS, 0.4) | {"ensemble": 0.8, judgement.STUDENT: 0.7, "other": 0.75}
    return {kind: [probabilities(p, y) for y in labels] for kind, p in right.items()}, labels


def test_the_share_kept_is_of_the_gain_over_the_strongest_direct_model(models):
    found, labels = models
    found["direct_label_smoothing"] = [probabilities(0.5, y) for y in labels]
    judged = judgement.judge_student(found, labels, ["other"])["nll"]
    assert judged["strongest_direct"] == "direct_label_smoothing"
    assert judged["lead"] == pytest.approx(np.log(0.8 / 0.5))
    assert judged["kept"] == pytest.approx(np.log(0.7 / 0.5) / np.log(0.8 / 0.5))
    assert judged["kept_interval"] == pytest.approx([judged["kept"]] * 2)
    assert judged["counts"]


def test_the_best_alternative_may_be_another_tool(models):
    found, labels = models
    judged = judgement.judge_student(found, labels, ["other"])["nll"]
    assert judged["best_alternative"] == "other"
    assert judged["over"] == pytest.approx(np.log(0.7 / 0.75))
    assert judged["worse"]
    assert judged["worse_beyond_interval"]
    alone = judgement.judge_student(found, labels)["nll"]
    assert alone["best_alternative"] in judgement.DIRECT
    assert not alone["worse"]


def test_a_lead_within_its_error_does_not_count(models):
    found, labels = models
    random = np.random.default_rng(1)
    noisy = [probabilities(0.4, random.permutation(y)) for y in labels]
    judged = judgement.judge_student(found | {"ensemble": noisy}, labels)["accuracy"]
    assert judged["lead"] < 0
    assert not judged["counts"]
    assert judged["kept"] is None


def case(size: str, kept: float, counts: bool = True, pool: bool = True, **more) -> dict:
    means = {judgement.STUDENT: 0.5, "other": 0.4}
    metric = {"kept": kept, "counts": counts, "worse": False, "worse_beyond_interval": False, "means": means}
    about = {"set": f"set {kept}", "regime": "pool" if pool else "all", "size": size, "with_pool": pool}
    return about | {"warned": False, "accuracy": dict(metric), "nll": dict(metric)} | more


def test_goals_are_judged_where_a_metric_counts():
    judged = [
        case("keep", 0.97),
        case("keep", 0.9),
        case("keep", -5.0, counts=False),
        case("keep", 0.5, pool=False),
        case("tenth", 0.9, pool=False),
    ]
    found = judgement.goals(judged, ["other"])
    assert [goal.met for goal in found] == [False, False, None, True, True, True, False, True]
    assert found[0].found == "1 of 2 cases; mean 94%, least 90% (set 0.9, pool)"
    assert found[6].found.startswith("0 of 4 cases")  # a larger NLL is worse
    assert found[7].found == "4 of 4 cases"


def test_a_worse_student_misses_the_goal_unless_the_preflight_warns():
    worse = case("keep", 0.5, counts=False)
    worse["nll"] |= {"worse": True, "worse_beyond_interval": True}
    silent, close = judgement.goals([worse], [])[4:6]
    assert not silent.met
    assert not close.met
    assert "not set 0.5, pool nll" in close.found
    assert judgement.goals([worse | {"warned": True}], [])[4].met


def test_table_and_picture(models, tmp_path):
    found, labels = models
    judged = judgement.judge_student(found, labels, ["other"])
    students = [ABOUT | {"size": size} | judged for size in ("member", "keep")]
    goals = [asdict(goal) for goal in judgement.goals(students, ["other"])]
    result = {"students": students, "settings": {"seeds": SEEDS}, "goals": goals}
    assert table(result).row_count == 2
    assert goals_table(result).row_count == 8
    picture.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_case_that_fails_leaves_the_others_their_figures(models, tmp_path, monkeypatch):
    found, labels = models
    one = ABOUT | {"size": "keep"} | judgement.judge_student(found, labels, ["other"])

    def students(case, peers, note):
        if case.name == "letter":
            raise RuntimeError("a tool stopped")
        return [one | {"set": case.name}]

    monkeypatch.setattr(command, "_students", students)
    out = tmp_path / "result.json"
    earlier = tmp_path / "earlier.json"
    students_then = [one | {"set": name, "commit": "b"} for name in ("income", "spam")]
    about = {"benchmark": "quality", "source": {"commit": "a"}, "settings": {"peers": ["another tool"]}}
    earlier.write_text(json.dumps(about | {"students": students_then}))
    words = ["--quick", "--sets", "digits", "letter", "spam", "--work", str(tmp_path), "--out", str(out)]
    assert main([*words, "--beside", str(earlier)], tmp_path) == 1
    made = json.loads(out.read_text())
    assert [one["set"] for one in made["students"]] == ["income", "digits", "spam"]  # this run's spam
    assert made["settings"]["peers"][-1] == "another tool"
    assert made["students"][0]["commit"] == "b"
    assert made["students"][2]["commit"] == made["source"]["commit"]
    assert made["failed"] == {"letter-quick": "RuntimeError: a tool stopped"}
    assert len(made["goals"]) == 8


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_students_of_images_have_the_sizes_of_their_names(name):
    given = jobs.students(jobs.Case(name, "pool", 1, 0, Path("runs")), StudentConfig(CNN))
    image = [1, 8, 8] if name == "digits" else [1, 28, 28]
    assert given.pop("keep").keep == 0.95
    whole, part = (sum(p.numel() for p in one.model(image=image).parameters()) for one in given.values())
    assert part / whole == pytest.approx(0.25 if name == "fashion" else 0.1, abs=0.05)


def test_a_run_is_timed_by_a_command_that_the_command_line_takes(tmp_path, capsys):
    frame = pandas.DataFrame(
        {"x": range(300), "z": [i % 7 for i in range(300)], times.TARGET: ["early", "late", "later"] * 100}
    )
    frame.to_csv(tmp_path / "flights.csv", index=False)
    words = times.command(tmp_path / "flights.csv", tmp_path / "runs")[3:]
    assert ensdistill([*words, "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["seeds"], settings["minutes"]) == (1, times.SEARCH)
    (student,) = settings["distill"]["students"].values()
    assert (student["keep"], student.get("model")) == (0.95, None)
    late, soon = times.goals({"10000": 5.5, "300000": 20.0})
    assert (late.met, soon.met) == (False, True)


def test_a_tool_that_is_not_there_is_named_with_the_remedy():
    assert available(sys.executable, "numpy") == ""
    assert available(sys.executable, "no_such_tool").endswith("has no no_such_tool; pip install no_such_tool")
    assert available("/no/python", "numpy") == "/no/python: No such file or directory"


class SoftAndHard:
    beta, temperature = 0.9, 2.0

    def __call__(self, student, teacher, targets=None):
        return 1.0 if targets is None else 5.0


def test_a_batch_without_a_label_has_torchdistills_soft_part_alone():
    loss = WithoutLabels(SoftAndHard())
    assert loss({}, {}, torch.tensor([-100, -100])) == pytest.approx(0.9 * 4)
    assert loss({}, {}, torch.tensor([-100, 2])) == 5.0


def example(name: str, size: float, kept: float, task: str = "classification") -> dict:
    known = Features(5.0, 50.0, 1.0, 0.0, 3.0, size=size)
    figures = {"kept": kept, "lead": 0.1, "standard_error": 0.01}
    return {"set": name, "task": task, **figures, "features": asdict(known)}


def test_a_rule_predicts_sets_that_it_left_out_or_says_that_it_does_not():
    random = np.random.default_rng(0)
    sizes = np.exp(random.normal(size=60))
    names = [f"set {i % 6}" for i in range(60)]
    shares = 0.5 + 0.2 * np.log(sizes)
    found = [example(*one) for one in zip(names, sizes, np.clip(shares, -0.4, 1.1), strict=True)]
    learned = rule.fit(found)["classification"]
    assert learned.useful
    assert learned.error < 0.1 < learned.mean_error
    assert learned.expect(Features(5.0, 50.0, 1.0, 0.0, 3.0, size=1.0)).share == pytest.approx(0.5, abs=0.05)
    by_set = dict(zip(dict.fromkeys(names), random.uniform(0, 1, 6), strict=True))
    found = [example(n, size, by_set[n]) for n, size in zip(names, sizes, strict=True)]
    none = rule.fit(found)["classification"]
    assert none.error == pytest.approx(none.mean_error, rel=0.1)
    uncertain = [example("one", 1.0, 0.5) | {"lead": 0.001}]
    with pytest.raises(ValueError, match=r"^found: expected examples of three"):
        rule.fit(uncertain)


def test_a_task_has_a_rule_of_its_own_where_that_is_better_on_its_sets():
    random = np.random.default_rng(0)
    found = []
    for number, size in enumerate(np.exp(random.normal(size=90))):
        found.append(example(f"classes {number % 6}", size, np.clip(0.5 + 0.2 * np.log(size), -0.4, 1.1)))
        found.append(example(f"numbers {number % 3}", size, 0.1, "regression"))
        found.append(example("labels", size, 0.4, "multilabel"))
    rules = rule.fit(found)
    assert {task: one.tasks for task, one in rules.items()} == {
        "classification": ("classification",),
        "regression": ("regression",),
        "multilabel": ("classification", "multilabel", "regression"),  # one set is too few
    }
    assert rules["regression"].mean == pytest.approx(0.1)
    assert (rules["multilabel"].cases, rules["multilabel"].sets) == (270, 10)
    assert "270 students on 10 sets of classification, multilabel, regression" in rules["multilabel"].source


def test_small_cases_begin_with_the_first_of_every_set(tmp_path):
    cases = list(rule.small_cases(tmp_path, list(SETS)))
    assert sorted(case.name for case in cases[: len(rule.SMALL)]) == sorted(rule.SMALL) == sorted(SETS)
    assert len(cases) == sum(map(len, rule.SMALL.values()))
    assert all(case.first_seed >= 100 for case in cases)  # neither development's nor the report's
    assert next(case for case in cases if case.name == "diabetes").rows.test is None


def test_results_of_the_benchmark_are_examples_of_the_rule_but_not_those_of_quick_jobs():
    known = asdict(Features(5.0, 50.0, 1.0, 0.0, 3.0, size=0.1))
    nll = {"kept": 0.7, "lead": 0.1, "standard_error": 0.01, "means": {}}
    student = {"set": "letter", "size": "tenth", "task": "classification", "features": known, "nll": nll,
               "dataset": {"labelled": 9, "pool": 4, "classes": 2}}  # fmt: skip
    result = {"settings": {"quick": False}, "students": [student, student | {"features": None}]}
    (one,) = rule.examples_of(result)
    assert one == example("letter", 0.1, 0.7) | {"labelled": 9, "pool": 4, "size": "tenth"}
    assert not list(rule.examples_of(result | {"settings": {"quick": True}}))


def test_an_unknown_feature_counts_as_the_mean_by_weight_in_the_fit_and_in_the_rule():
    """A weight changes the mean of a feature, and so an unknown feature that stands for it."""
    sizes, weights = np.array([-1.0, 0.0, 1.0, 2.0, np.nan, np.nan]), np.array([1.0, 1.0, 1.0, 7.0, 3.0, 2.0])
    x = np.full((6, len(NAMES)), 0.0)
    x[:, NAMES.index("size")] = sizes
    y = 0.4 + 0.1 * np.where(np.isnan(sizes), 1.4, sizes)  # 1.4 is the mean by weight
    groups = np.array([*"aabbcc"])
    mean, means, scales, slopes = rule._Examples(x, y, weights, groups).regression(("size",), 1e-9)
    assert means == pytest.approx([1.4])
    assert mean + slopes[0] * (0.0 - means[0]) / scales[0] == pytest.approx(0.4)
    made = RetentionRule(("size",), tuple(means), tuple(scales), tuple(slopes), mean, 0.1, 0.2, 6, 3)
    known = Features(1.0, 1.0, 0.0, 0.0, 0.0)
    assert made.expect(known).share == pytest.approx(0.54)
    assert made.expect(replace(known, size=np.e)).share == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["digits", "letter", "income", "spam", "diamonds"])
def test_splits_have_the_regimes_rows_and_differ_by_seed(name):
    try:
        samples, labels, classes = content(name)
    except Missing as error:
        pytest.skip(str(error))
    assert len(samples) == len(labels)
    assert labels.max() == len(classes) - 1
    for size in SETS[name].regimes.values():
        one, other = (Drawn(name, size.labelled, size.pool, size.test, first).split(0) for first in (0, 1000))
        assert abs(len(one.labelled) - size.labelled) <= 0.1 * size.labelled
        assert abs(len(one.pool) - size.pool) <= 0.1 * size.pool
        assert not np.array_equal(np.sort(one.test.uids), np.sort(other.test.uids))


def of_task(task: str) -> tuple[dict, list]:
    """Models of labels, or of numbers, whose order is known: the ensemble, another tool, the student, direct."""
    random, found = np.random.default_rng(0), {}
    labels = [random.integers(0, 2, (ROWS, 3)).astype(np.int8) for _ in range(1)]
    if task == "regression":
        labels = [100.0 + 20 * random.normal(size=(ROWS, 1)) for _ in range(1)]
    for kind in (*KINDS, "other"):
        noise = {"ensemble": 0.4, "other": 0.7, judgement.STUDENT: 0.9}.get(kind, 1.5)
        if task == "multilabel":
            odds = [(2 * y - 1) / noise + random.normal(size=y.shape) for y in labels]
            values = [1 / (1 + np.exp(-z)) for z in odds]
        else:
            means = [y + 20 * noise * random.normal(size=y.shape) for y in labels]
            values = [np.concatenate([m, np.full(m.shape, (20 * noise) ** 2)], 1) for m in means]
        found[kind] = [judgement.as_prediction(task, one) for one in values]
    return found, labels


@pytest.mark.parametrize(
    ("task", "metrics"), [("multilabel", ["map", "bce"]), ("regression", ["rmse", "nll"])]
)
def test_labels_and_numbers_are_judged_by_their_own_metrics(task, metrics, tmp_path):
    found, labels = of_task(task)
    if task == "regression":  # a model of means alone has no likelihood
        bare = [replace(one, variance=None) for one in found["direct"]]
        found["direct"] = bare
    judged = judgement.judge_student(found, labels, ["other"], task)
    assert judgement.metrics_of(judged) == metrics
    assert list(judged) == ["task", *metrics]
    for metric in metrics:
        one = judged[metric]
        assert one["counts"]
        assert 0 < one["kept"] < 1
        assert one["best_alternative"] == "other"
        assert one["over"] < 0
        assert one["worse"]
    if task == "regression":
        assert "direct" not in judged["nll"]["means"]
        errors = found["ensemble"][0].mean - labels[0]
        expected = np.sqrt(np.mean(errors**2)) / labels[0].std()
        assert judged["rmse"]["means"]["ensemble"] == pytest.approx(expected)
    students = [ABOUT | {"size": size} | judged for size in ("member", "keep")]
    goals = judgement.goals([*students, case("keep", 0.97)], ["other"])
    assert goals[6].found.startswith("0 of 2 cases") or goals[6].found.startswith("1 of 2")
    assert judgement.goals(students, ["a tool without a model"])[6].met is None
    result = {"students": students, "settings": {"seeds": SEEDS}, "goals": [asdict(goal) for goal in goals]}
    assert table(result).row_count == 2
    picture.draw(result, tmp_path / "picture.png")


def test_tools_take_the_sets_of_their_tasks():
    taken = {name: {one for one in SETS if peer.takes(one)} for name, peer in PEERS.items()}
    assert taken["plain KD loop"] == set(SETS)
    assert {"tags", "prices", "delays", "diabetes"} <= taken["LightGBM on labels"]
    assert "packages" not in taken["LightGBM on labels"]


def test_the_plain_loop_learns_means_alone(monkeypatch):
    split = Drawn("diabetes", 100, 50, None, 0).split(0)
    ensemble = Ensemble.from_members([Ridge().fit(split.labelled.inputs, split.labelled.labels)])
    monkeypatch.setattr(peers.Ensemble, "load", lambda *_, **__: ensemble)
    one = peers.lesson(jobs.Case("diabetes", "pool", 1, 0, Path("runs")), 0, split, Path("ensemble"))
    assert one.model()(torch.from_numpy(np.asarray(one.inputs[:4], np.float32))).shape == (4, 1)
    assert one.targets.shape == (150, 1)


def test_the_plain_loop_loads_the_benchmarks_own_networks(monkeypatch):
    class Loaded(Exception):
        pass

    def load(_folder, trusted):
        raise Loaded(trusted)

    monkeypatch.setattr(peers.Ensemble, "load", load)
    images = np.zeros((8, 1, 28, 28), np.float32), np.arange(8) % 2, ("a", "b")
    monkeypatch.setattr(jobs, "content", lambda _: images)
    with pytest.raises(Loaded, match=r"benchmarks\.quality\.lenet\.LeNet"):
        peers.lesson(jobs.Case("fashion", "pool", 1, 0, Path("runs")), 0, None, Path("ensemble"))


def test_other_tools_have_a_tables_strings_as_categories():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": np.arange(6.0), "kind": ["x", "y", "x", "y", "z", "x"]})
    rows = Rows(frame, np.arange(6), np.array([0, 1, 0, 1, 1, 0]))
    split = Split(rows.take(np.arange(4)), rows.take(np.arange(0)), rows.take(np.arange(4, 6)), ("a", "b"))
    x, test = peers._features(split)
    assert x["kind"].tolist() == ["x", "y", "x", "y"]
    assert test["size"].tolist() == [4, 5]
    assert test["kind"].isna().tolist() == [True, False]  # the labelled rows have no z


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_boosted_trees_and_the_plain_loop_predict_labels_and_numbers(task, monkeypatch):
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3)).astype(np.float32)
    labels = (x[:, :2] > 0).astype(np.int8) if task == "multilabel" else 50 + 10 * x[:, :1].astype(float)
    rows = Rows(x, np.arange(400), labels)
    pool = rows.take(np.arange(100, 200)).without_labels()
    split = Split(
        rows.take(np.arange(100)), pool, rows.take(np.arange(200, 400)), tuple("ab"[: labels.shape[1]])
    )
    truth = split.test.labels
    boosted = peers.boosted(None, 0, split, None)
    soft = np.where(labels == 1, 0.95, 0.05) if task == "multilabel" else labels
    both = np.concatenate([split.labelled.labels, pool.labels])
    one = peers.Lesson(lambda: MLP(3, [16], labels.shape[1]), x[:200], both, soft[:200].astype(np.float32),
                       x[200:], 400, 64)  # fmt: skip
    monkeypatch.setattr(peers, "lesson", lambda *_: one)
    monkeypatch.setattr(peers, "RATE", 0.01)
    for made in (boosted, peers.plain_loop(None, 0, split, None)):
        peers._check("tool", made, split)
        if task == "multilabel":
            assert ((made > 0.5) == truth).mean() > 0.9
        else:
            assert np.sqrt(np.mean((made[:, :1] - truth) ** 2)) < 3.5
            assert 0 < np.sqrt(made[0, 1]) < 8
    with pytest.raises(RuntimeError, match=r"^tool: expected predictions \["):
        peers._check("tool", boosted[:, :0], split)


@pytest.mark.parametrize(
    "name",
    ["diabetes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prices", "tags", "delays"))],
)
def test_sets_of_other_tasks_have_labels_in_their_form(name):
    try:
        samples, labels, names = content(name)
    except Missing as error:
        pytest.skip(str(error))
    assert task_of_labels(labels) == SETS[name].task
    assert labels.shape == (len(samples), len(names))
    size = SETS[name].regimes["quick"]
    split = Drawn(name, size.labelled, size.pool, size.test, 0).split(0)
    assert split.task == SETS[name].task
    assert (len(split.labelled), len(split.pool)) == pytest.approx((size.labelled, size.pool), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "diabetes", "tags"])
def test_a_small_run_goes_on_and_ends_with_a_result(name, tmp_path):
    arguments = ["--quick", "--develop", "--sets", name, "--seeds", "1", "--work", str(tmp_path / "runs")]
    out = tmp_path / "result.json"
    try:
        content(name)
    except Missing as error:
        pytest.skip(str(error))
    assert main([*arguments, "--out", str(out)], tmp_path) == 0
    first = json.loads(out.read_text())
    assert [one["size"] for one in first["students"]] == ["member", "tenth", "keep"]
    metric = judgement.metrics_of(first["students"][0])[judgement.LIKELIHOOD]
    means = first["students"][0][metric]["means"]
    assert {tool for tool, peer in PEERS.items() if peer.takes(name)} <= set(means)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("judged.json")}
    assert len(kept) == 2
    assert main([*arguments, "--out", str(out)], tmp_path) == 0  # everything is there
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    again = json.loads(out.read_text())
    assert [one[metric] for one in again["students"]] == [one[metric] for one in first["students"]]
