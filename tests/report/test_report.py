"""The judgement: report.json against its documented schema, and every case the verdict knows."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import HELPED, labels_of, model, predict, run_results
from report_task_cases import label_results, number_results
from sklearn.metrics import accuracy_score, log_loss

from ensdistill.common.tasks import TASKS, Task
from ensdistill.data.copies import Copies
from ensdistill.report import RunResults, StudentResults, as_text, judge
from ensdistill.report.html import render
from ensdistill.report.judge import _retained
from ensdistill.report.measures import MEASURES
from ensdistill.report.results import FAMILIES, KINDS, STUDENT_KINDS
from ensdistill.report.verdict import OUTCOMES

PAGE = (Path(__file__).parents[2] / "docs" / "report-json.md").read_text(encoding="utf-8")
SCHEMA = PAGE.split("```text\n")[1].split("```")[0]
UNIFORM = dict.fromkeys(HELPED, 0.93)


def documented(task: Task) -> dict[str, str]:
    """Path pattern -> type, read from the page: braces and the task's metrics expanded, the starred entries
    also under each student."""
    schema: dict[str, str] = {}
    measures = MEASURES[task]
    names = {
        "<shown>": f"{{{','.join(metric.name for metric in measures.metrics)}}}",
        "<floored>": measures.floored[0],
        "<about>": measures.each.about,
        "<each>": measures.each.metric.name,
    }
    text = re.sub("|".join(names), lambda found: names[found[0]], SCHEMA)
    text = re.sub(r"\{([^{}]*)\{([^{}]*)\}([^{}]*)\}", r"{\1\2\3}", text)
    for line in text.splitlines():
        if "forecast.none " in line:  # instead of the other entries
            continue
        of_tasks = re.search(rf"; (({'|'.join(TASKS)}|, )+)", line)
        if of_tasks is not None and task not in of_tasks[1]:
            continue
        entry = re.fullmatch(r"(  \* |    )(\S+)\s+(\S.*)", line)
        if entry is None:
            continue
        star, pattern, kind = entry.groups()
        for path in expand(pattern):
            schema[path] = kind
            if "*" in star:
                schema[f"students.<student>.{path}"] = kind
    return schema


def expand(pattern: str) -> list[str]:
    parts = re.split(r"(\{[^}]*\})", pattern)
    return [
        "".join(choice)
        for choice in itertools.product(*(p[1:-1].split(",") if p.startswith("{") else [p] for p in parts))
    ]


def leaves(value: Any, path: str = "") -> dict[str, set[str]]:
    """Every path of a JSON value with the types found there; names that vary are generalised as the page
    has them."""
    if isinstance(value, dict | list) and not path.endswith(".sample"):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, set[str]] = {}
        for key, item in items:
            for inner, types in leaves(item, f"{path}.{generalised(path, key)}".lstrip(".")).items():
                found.setdefault(inner, set()).update(types)
        return found
    return {path: {"null" if value is None else type(value).__name__}}


def generalised(path: str, key: Any) -> str:
    if isinstance(key, int):
        return "<i>"
    if path.endswith("models"):
        return "<kind>"
    if path == "auto.left_out":
        return "<member>"
    if path in ("students", "without_copies", "forecast.expected"):
        return "<student>"
    if path.endswith("student_over"):
        return "<alternative>"
    if path in ("environment", "timings_s", "storage_bytes"):
        return "*"
    if path.endswith("strongest"):
        return "<family>"
    of_metric = r"((?<!<metric>\.)retained_gain|over_best_member|contribution|shapley|gains\.(ensemble|student|student_over\.<alternative>)|strongest\.<family>)$"
    return "<metric>" if re.search(of_metric, path) else str(key)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return judge(run_results({}, {"student": 0.955}))


@pytest.mark.parametrize("levels", [HELPED, UNIFORM, HELPED | {"ensemble": 0.90}])
def test_json_fits_the_schema(levels: dict[str, float]) -> None:
    report = judge(with_copies(levels, {}))
    found = leaves(json.loads(json.dumps(report, allow_nan=False)))
    schema = documented("classification")
    assert len(schema) > 100
    absent = {path for path in schema if path not in found}
    # A retained gain without an interval has ci95 null in the place of its ends.
    assert {path for path in absent if "retained_gain" not in path} == set()
    assert judge(run_results(levels))["without_copies"] is None
    for path, types in found.items():
        name = f"{path}.<i>" if path.endswith(("retained_gain.<metric>.ci95", "retained_gain.ci95")) else path
        assert name in schema, f"{path} is not documented"
        allowed = set(re.findall(r"int|float|str|bool|dict|null", schema[name])) or types
        assert types <= allowed, f"{path}: {types}, documented as {schema[name]}"


@pytest.mark.parametrize("make", [label_results, number_results])
def test_json_of_other_tasks_fits_the_schema(make: Callable[..., RunResults]) -> None:
    results = make(seeds=(0,))
    masks = [np.arange(len(y)) < 40 for y in results.labels]
    copies = [Copies(mask, 40, 0, 0, 0, 0, 0) for mask in masks]
    report = judge(replace(results, copies=copies), resamples=2000)
    found = leaves(json.loads(json.dumps(report, allow_nan=False)))
    schema = documented(results.task)
    absent = {path for path in schema if path not in found}
    tempered = results.task == "multilabel"
    assert absent == set() if tempered else {path.split(".")[2] for path in absent} == {"temperature"}
    assert set(found) - set(schema) == set()
    for path, types in found.items():
        allowed = set(re.findall(r"int|float|str|bool|dict|null", schema[path])) or types
        assert types <= allowed, f"{path}: {types}, documented as {schema[path]}"


def test_keys_that_are_promised(report: dict[str, Any]) -> None:
    assert report["schema_version"] == 4
    assert report["task"] == "classification"
    assert set(report["models"]) == set(KINDS)
    assert set(report["students"]) == {"mlp", "cnn"}
    for key in ("models", "gains", "retained_gain", "serving", "verdict", "outcome"):
        assert report[key] == report["students"]["mlp"][key]
        assert set(report["students"]["cnn"]) == set(report["students"]["mlp"])
    assert report["students"]["cnn"]["models"]["student"] != report["models"]["student"]


def test_metrics_are_means_over_seeds_of_scikit_learns() -> None:
    results = run_results()
    student = judge(results)["models"]["student"]
    pairs = list(zip(results.students[0].models["student"].probabilities, results.labels, strict=True))
    expected = [log_loss(y, p, labels=list(range(10))) for p, y in pairs]
    assert student["nll"]["per_seed"] == pytest.approx(expected, rel=1e-12)
    assert student["nll"]["mean"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert student["accuracy"]["per_seed"] == [accuracy_score(y, p.argmax(axis=1)) for p, y in pairs]


def test_retained_gain_is_the_ratio_of_the_means(report: dict[str, Any]) -> None:
    for metric in ("accuracy", "nll", "brier"):
        ensemble, direct, student = (
            report["models"][kind][metric]["mean"] for kind in ("ensemble", "direct", "student")
        )
        retained = report["retained_gain"][metric]
        assert retained["mean"] == pytest.approx((student - direct) / (ensemble - direct), rel=1e-9)
        assert retained["ci95"][0] < retained["mean"] < retained["ci95"][1]
        assert retained["meaningful"]
        assert retained["share_without_gain"] == 0
        # Gains are improvements, also where lower is better.
        assert report["gains"]["student"][metric]["mean"] == pytest.approx(abs(student - direct), rel=1e-9)


def test_a_student_equal_to_the_ensemble_keeps_all_and_one_equal_to_direct_nothing() -> None:
    report = judge(run_results({"student": HELPED["ensemble"]}, {"student": HELPED["direct"]}))
    for metric in ("accuracy", "nll", "brier"):
        assert report["retained_gain"][metric]["ci95"] == pytest.approx([1, 1], abs=1e-9)
        assert report["students"]["cnn"]["retained_gain"][metric]["ci95"] == pytest.approx([0, 0], abs=1e-9)


def test_serving_is_ensemble_over_student(report: dict[str, Any]) -> None:
    assert report["serving"]["parameters"] == 192_400 / 4810
    assert report["serving"]["latency_ms"]["batch_256"]["p95"] == pytest.approx(40)


def test_serving_has_no_ratio_to_nothing() -> None:
    models = {kind: model(kind, 0.93, [labels_of(0)], parameters=0) for kind in STUDENT_KINDS}
    report = judge(run_results(seeds=(0,), students=[StudentResults("rule", "", models, {})]))
    assert report["serving"]["parameters"] is None
    assert report["serving"]["bytes"] == 40


@pytest.mark.parametrize(
    ("levels", "outcome", "says"),
    [
        (
            {},
            "helped",
            r"^Distillation helped mlp in accuracy and NLL\. .*Against plain direct training, accuracy 4\.0 "
            r"points better \[.*% \[.*of the",
        ),
        (
            {"student": 0.920},
            "did_not_help",
            r"^Distillation did not help mlp\. .*accuracy 0\.\d points worse .*none of the ensemble's gain",
        ),
        (
            {"student": HELPED["direct"]},
            "did_not_help",
            r"^Distillation did not help mlp\. .*accuracy 0\.0 points",
        ),
        (
            {"ensemble": 0.925},
            "ensemble_has_no_gain",
            r"^Don't distil mlp: trained directly it is not measurably worse than the ensemble\. .*helped "
            r"it, not the ensemble's lead",
        ),
        (
            {"ensemble": 0.90, "student": 0.92},
            "ensemble_has_no_gain",
            r"^Don't distil mlp.* has accuracy 3\.0 points worse (?!.*lead)",
        ),
        # A direct model by another name is a direct model.
        (
            {"ensemble": 0.93, "direct_label_smoothing_temperature_scaled": 0.93},
            "ensemble_has_no_gain",
            "direct with label smoothing",
        ),
        (
            {"direct_temperature_scaled": 0.968},
            "did_not_help",
            r"points worse \[.*than direct with temperature scaling",
        ),
        (
            {"direct_label_smoothing_temperature_scaled": 0.968},
            "did_not_help",
            r"than direct with smoothing and temperature scaling",
        ),
        (
            {"distilled_from_best_member": 0.966},
            "one_teacher_will_do",
            r"^The ensemble taught mlp not measurably better than its best",
        ),
        (
            {"distilled_from_best_member": 0.97},
            "one_teacher_will_do",
            r"^The ensemble taught mlp worse than its best member alone does\.",
        ),
        (
            {"best_member": 0.966},
            "best_member_will_do",
            r"^For its size mlp is best distilled, but the best member alone, 10x as many bytes, is not "
            r"measurably worse\.",
        ),
        ({"best_member": 0.97}, "best_member_will_do", "10x as many bytes, is better"),
    ],
)
def test_verdicts(levels: dict[str, float], outcome: str, says: str) -> None:
    report = judge(run_results(levels))
    assert report["outcome"] == outcome
    assert re.search(says, report["verdict"]), report["verdict"]
    if set(levels) == {"ensemble"}:
        for retained in report["retained_gain"].values():
            assert retained["ci95"] is None
            assert not retained["meaningful"]
            assert retained["share_without_gain"] > 0.025


def with_student(change: Any, **levels: float) -> dict[str, Any]:
    """A report whose student's probabilities are ``change(direct's probabilities, labels, seed)``."""
    results = run_results(levels)
    student = results.students[0]
    direct = student.models["direct"]
    arrays = [
        change(p, y, s) for s, (p, y) in enumerate(zip(direct.probabilities, results.labels, strict=True))
    ]
    models = {**student.models, "student": model("student", 0.9, results.labels, probabilities=arrays)}
    return judge(run_results(levels, students=[StudentResults("mlp", "", models, {})]))


def test_the_verdict_is_open_where_the_difference_is_noise() -> None:
    def exchange(p: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
        # Forty rows change places with a fresh draw: a few better, a few fewer worse.
        wrong, right = np.nonzero(p.argmax(1) != y)[0], np.nonzero(p.argmax(1) == y)[0]
        changed = p.copy()
        for rows in (wrong[:21], right[:20]):
            for i in rows:
                top, other = int(p[i].argmax()), int(y[i]) if p[i].argmax() != y[i] else int((y[i] + 1) % 10)
                changed[i, [top, other]] = p[i, [other, top]]
        return changed

    others = {
        "direct_label_smoothing",
        "direct_label_smoothing_temperature_scaled",
        "distilled_from_best_member",
    }
    others |= {"distilled_from_best_member_temperature_scaled"}
    report = with_student(exchange, **dict.fromkeys(others, 0.90))
    assert report["outcome"] == "cannot_tell"
    assert report["verdict"].startswith(
        "Whether distillation helped mlp can't be told from these seeds and rows. "
    )
    # As close to direct, but measurably worse than the same model distilled from one member.
    behind = with_student(
        exchange, **dict.fromkeys((kind for kind in others if kind.startswith("direct")), 0.90)
    )
    assert behind["strongest"]["direct"]["nll"]["student"]["mean"] > 0
    assert behind["outcome"] == "did_not_help"


def test_mixed_where_likelihood_pays_for_accuracy() -> None:
    def overconfident(p: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
        better = predict(y, 0.96, seed)
        top = np.eye(10)[better.argmax(axis=1)]
        return top * (1 - 1e-9) + (1 - top) * 1e-9 / 9

    report = with_student(overconfident)
    assert report["outcome"] == "mixed"
    assert "in one metric and hurt it in another" in report["verdict"]
    assert re.search(r"accuracy 3\.\d points better .* NLL 0\.\d+ worse", report["verdict"]), report[
        "verdict"
    ]


def test_a_gain_in_one_metric_alone_is_kept_in_that_one_alone() -> None:
    # An ensemble right on the same rows as direct, which is underconfident, but with a better likelihood.
    results = run_results()
    direct = results.students[0].models["direct"]
    sharp = [sharpen(p) for p in direct.probabilities]
    report = judge(run_results(ensemble=model("ensemble", 0.9, results.labels, probabilities=sharp)))
    assert report["outcome"] == "helped"
    assert not report["retained_gain"]["accuracy"]["meaningful"]
    assert report["retained_gain"]["accuracy"]["mean"] is None
    assert report["retained_gain"]["nll"]["meaningful"]
    assert "so a retained gain means nothing here) and NLL" in report["verdict"]
    assert "% [" in report["verdict"]


def with_copies(*levels: dict[str, float], rows: int = 40, **changes: Any) -> RunResults:
    """Results in whose first seed so many test rows equal labelled rows."""
    results = run_results(*levels, **changes)
    masks = [np.arange(len(y)) < (rows if s == 0 else 0) for s, y in enumerate(results.labels)]
    return replace(results, copies=[Copies(mask, int(mask.sum()), 0, 0, 3, 2, 1) for mask in masks])


def test_copies_are_counted_and_the_figures_given_without_them() -> None:
    report, plain = judge(with_copies()), judge(run_results())
    assert report["copies"] == {
        "test": 40,
        "labelled": 40,
        "pool": 0,
        "synthetic": 0,
        "labelled_in_pool": 9,
        "other_label": 6,
        "left_out": 3,
    }
    assert report["models"] == plain["models"]
    results = run_results()
    pairs = zip(results.students[0].models["student"].probabilities, results.labels, [40, 0, 0], strict=True)
    expected = np.mean([log_loss(y[n:], p[n:], labels=list(range(10))) for p, y, n in pairs])
    fewer = report["without_copies"]["mlp"]
    assert fewer["models"]["student"]["nll"] == pytest.approx(expected, rel=1e-12)
    assert fewer["models"]["student"]["nll"] != report["models"]["student"]["nll"]["mean"]
    assert fewer["outcome"] == report["outcome"]
    assert "Without the 40" not in report["verdict"]


def test_an_outcome_that_the_copies_made_is_taken_back() -> None:
    results = run_results({"student": HELPED["direct"]}, seeds=(0,))
    student = results.students[0]
    known = student.models["student"].probabilities[0].copy()
    known[:300] = np.eye(10)[results.labels[0][:300]]  # the student knows these rows by heart
    models = {**student.models, "student": model("student", 0.9, results.labels, probabilities=[known])}
    levels = {"ensemble": 0.99}
    report = judge(
        with_copies(levels, rows=300, seeds=(0,), students=[StudentResults("mlp", "", models, {})])
    )
    without = report["without_copies"]["mlp"]
    assert report["outcome"] != without["outcome"]
    assert (
        f"Without the 300 test rows that equal rows trained on it is otherwise: {without['verdict']}"
        in report["verdict"]
    )


def test_a_seed_of_nothing_but_copies_has_no_figures_without_them() -> None:
    assert judge(with_copies(rows=697))["without_copies"] is None


def sharpen(p: np.ndarray) -> np.ndarray:
    logits = np.log(p) * 1.2
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_best_alternative_is_named_and_not_flattered() -> None:
    report = judge(run_results({"direct_label_smoothing": 0.968, "student": 0.966}))
    assert report["outcome"] == "did_not_help"
    sentence = (
        "Against the strongest alternatives of its size, accuracy 0.3 points worse [0.1, 0.5] than direct "
        "with label smoothing"
    )
    assert sentence in report["verdict"]
    for kinds in report["strongest"].values():
        for metric in kinds.values():
            assert metric["alternative"] == "direct_label_smoothing"
            assert metric["student"]["mean"] < 0


def with_direct(change: Any, kinds: tuple[str, ...], **levels: float) -> dict[str, Any]:
    """A report in which the models of ``kinds`` have direct's probabilities, changed."""
    results = run_results(levels)
    student = results.students[0]
    arrays = [
        change(p, y) for p, y in zip(student.models["direct"].probabilities, results.labels, strict=True)
    ]
    models = {
        **student.models,
        **{kind: model(kind, 0.9, results.labels, probabilities=arrays) for kind in kinds},
    }
    return judge(run_results(levels, students=[StudentResults("mlp", "", models, {})]))


def test_a_scaled_direct_decides_the_nll_alone() -> None:
    def right(p: np.ndarray, y: np.ndarray) -> np.ndarray:
        # As often right as direct, but with a likelihood that no student here reaches.
        sure = np.where(p.argmax(1) == y, 0.995, 0.4)
        rest = np.repeat(((1 - sure) / 9)[:, None], 10, axis=1)
        rest[np.arange(len(y)), p.argmax(1)] = sure
        return rest

    report = with_direct(right, ("direct_temperature_scaled",))
    strongest = report["strongest"]["same_size"]
    assert strongest["nll"]["alternative"] == "direct_temperature_scaled"
    assert strongest["accuracy"]["alternative"] == "distilled_from_best_member"
    assert report["gains"]["student"]["nll"][
        "beyond_interval"
    ]  # plain direct is beaten, which no longer decides
    assert report["outcome"] != "helped"
    assert "helped" not in report["verdict"].split(".")[0] or report["outcome"] == "mixed"
    assert "than direct with temperature scaling" in report["verdict"]


def test_help_in_one_metric_only_is_stated_for_that_one() -> None:
    # The student is right on the same rows as the strongest alternative, but surer where it is right.
    results = run_results({"distilled_from_best_member": 0.966})
    student = results.students[0]
    sharp = [sharpen(p) for p in student.models["student"].probabilities]
    models = {**student.models, "student": model("student", 0.9, results.labels, probabilities=sharp)}
    report = judge(run_results(students=[StudentResults("mlp", "", models, {})]))
    assert report["outcome"] == "helped"
    assert report["verdict"].startswith("Distillation helped mlp in NLL, not measurably in accuracy. ")
    assert not report["strongest"]["all"]["accuracy"]["student"]["beyond_interval"]
    assert report["strongest"]["all"]["nll"]["student"]["beyond_interval"]


def test_the_retained_gain_over_the_strongest_is_over_the_best_mean() -> None:
    report = judge(run_results({"direct_label_smoothing": 0.95}))
    for metric, sign in (("accuracy", 1), ("nll", -1), ("brier", -1)):
        means = {kind: sign * report["models"][kind][metric]["mean"] for kind in report["models"]}
        for family, kinds in FAMILIES.items():
            found = report["strongest"][family][metric]
            assert means[found["alternative"]] == max(means[kind] for kind in kinds)
            base = means[found["alternative"]]
            assert found["student"]["mean"] == pytest.approx(means["student"] - base)
            expected = (means["student"] - base) / (means["ensemble"] - base)
            assert found["retained_gain"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("version", [2, None])
def test_a_report_of_another_version_is_refused(report: dict[str, Any], version: int | None) -> None:
    old = {**report, "schema_version": version}
    for show in (as_text, lambda r: render(r, {})):
        with pytest.raises(
            ValueError,
            match=rf"report: expected schema_version 4; got {version}: .*`ensdistill report CONFIG`",
        ):
            show(old)


def test_a_loss_of_the_ensemble_is_nothing_to_keep() -> None:
    retained = _retained((-0.1, np.full(2000, -0.1)), (-0.2, np.full(2000, 0.2)))
    assert retained["mean"] is None
    assert retained["ci95"] is None
    assert not retained["meaningful"]


def test_same_results_same_report() -> None:
    assert judge(run_results()) == judge(run_results())


def test_outcomes_are_ordered_from_bad_news_to_good() -> None:
    assert OUTCOMES[0] == "did_not_help"
    assert OUTCOMES[-1] == "helped"
