"""The report of multi-label and regression runs: judgement, tables, page, figures and comparison."""

import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import run_results
from report_task_cases import LABELS, NOISE, label_results, number_results
from rich.console import Console

from ensdistill.common.tasks import TASKS
from ensdistill.report import Forecasts, RunResults, as_text, frontier, judge
from ensdistill.report.bootstrap import interval
from ensdistill.report.compare import compared, comparison_table, differences, figures_table, write_comparison
from ensdistill.report.drawing import Drawn, svg
from ensdistill.report.figures import draw
from ensdistill.report.frontier import lines
from ensdistill.report.html import render
from ensdistill.report.measures import MEASURES, METRICS
from ensdistill.report.multilabel_metrics import map_resampler
from ensdistill.report.results import SMOOTHED
from ensdistill.report.sections import forecast
from ensdistill.report.verdict import directions

RESULTS = {"multilabel": label_results, "regression": number_results}
TASK = pytest.mark.parametrize("task", RESULTS)


@cache
def report_of(task: str) -> dict[str, Any]:
    return judge(RESULTS[task](), resamples=2000)


@cache
def drawings(task: str) -> dict[str, Any]:
    return draw(RESULTS[task](), report_of(task))


def quick(results: RunResults) -> dict[str, Any]:
    return judge(results, resamples=2000)


def printed(shown: Any, width: int = 80) -> str:
    console = Console(file=(file := io.StringIO()), width=width)
    console.print(shown)
    return file.getvalue()


def test_a_metric_of_one_name_is_shown_alike_in_all_tasks() -> None:
    for measures in MEASURES.values():
        assert len(measures.by_name) == len(measures.metrics)
        assert len(measures.deciding) == 2
        for metric in measures.metrics:
            other = METRICS[metric.name]
            shown = (metric.label, metric.sign, metric.percent, metric.unit, metric.decides)
            assert shown == (other.label, other.sign, other.percent, other.unit, other.decides)


@TASK
def test_the_forecast_is_of_the_likelihood_of_the_task(task: str) -> None:
    report = report_of(task)
    (name,) = report["students"]
    expected = {"over_best_member": {}, "expected": {name: {"share": 0.5, "error": 0.3}}, "source": "a rule"}
    (section,) = forecast(report | {"forecast": expected})
    ((label, before, outcome),) = section.rows
    assert label == f"kept in {'BCE' if task == 'multilabel' else 'NLL'}, {name}"
    assert (before, outcome == "-") == ("50 % (standard error 30)", False)


@TASK
def test_the_task_is_named_and_gains_are_improvements(task: str) -> None:
    report = report_of(task)
    assert report["task"] == task
    assert report["outcome"] == "helped"
    for metric in MEASURES[task].compared:
        means = {kind: model[metric.name]["mean"] for kind, model in report["models"].items()}
        lead = metric.sign * (means["student"] - means["direct"])
        gain = report["gains"]["student"][metric.name]
        assert gain["mean"] == pytest.approx(lead, rel=1e-9)
        assert 0 < gain["ci95"][0] < lead < gain["ci95"][1]
        retained = report["retained_gain"][metric.name]
        expected = lead / (metric.sign * (means["ensemble"] - means["direct"]))
        assert retained["mean"] == pytest.approx(expected, rel=1e-9)
        assert retained["ci95"][0] < expected < retained["ci95"][1]


def test_the_interval_of_rmse_is_that_of_resampled_rows() -> None:
    results = number_results(seeds=(0,))
    labels, unit = results.labels[0], results.labels[0].std(0)
    rows = np.random.default_rng(5).integers(len(labels), size=(4000, len(labels)))
    errors = {}
    for kind, model in (("ensemble", results.ensemble), *results.students[0].models.items()):
        squares = np.square((labels - model.forecasts[0].mean) / unit).mean(1)
        errors[kind] = np.sqrt(squares[rows].mean(1))
    expected = interval(errors["direct"] - errors["student"])
    found = judge(results)["gains"]["student"]["rmse"]["ci95"]
    # Two draws of 4000: the ends differ by a few hundredths of the interval's width.
    assert found == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))


def test_the_interval_of_map_is_that_of_resampled_rows() -> None:
    results = label_results(seeds=(0,))
    labels = results.labels[0]
    rows = np.random.default_rng(5).integers(len(labels), size=(2000, len(labels)))
    counts = np.stack([np.bincount(drawn, minlength=len(labels)) for drawn in rows])
    student, direct = (
        map_resampler(results.students[0].models[kind].predictions("multilabel")[0], labels)(counts)
        for kind in ("student", "direct")
    )
    expected = interval(student - direct)
    found = quick(results)["gains"]["student"]["map"]["ci95"]
    # Two draws of 2000: the ends differ by a few hundredths of the interval's width.
    assert found == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


@TASK
@pytest.mark.parametrize(
    ("noise", "outcome"),
    [
        ({"student": 1.5, "student_temperature_scaled": 1.5}, "did_not_help"),
        ({"ensemble": 1.3, "student": 1.6}, "ensemble_has_no_gain"),
        ({"distilled_from_best_member": 0.5}, "one_teacher_will_do"),
        ({"best_member": 0.4}, "best_member_will_do"),
    ],
)
def test_outcomes_are_decided_as_for_classes(task: str, noise: dict[str, float], outcome: str) -> None:
    assert quick(RESULTS[task](seeds=(0,), noise=noise))["outcome"] == outcome


@TASK
def test_the_verdict_names_the_tasks_metrics(task: str) -> None:
    first, second = (metric.label for metric in MEASURES[task].deciding)
    verdict = report_of(task)["verdict"]
    assert verdict.startswith(f"Distillation helped mlp in {first} and {second}. ")
    number = r"\d+\.\d points" if task == "multilabel" else r"\d\.\d{3}"
    assert re.search(rf"Against plain direct training, {first} {number} better \[", verdict)
    assert "accuracy" not in verdict


def test_a_regressions_scaled_model_has_another_variance() -> None:
    # A fit of the variance leaves the mean as it is, so the NLL alone is better.
    results = number_results(noise={"direct_temperature_scaled": 1.1})
    verdict = quick(results)["verdict"]
    assert "than best member" in verdict
    weak = quick(number_results(noise={"direct_temperature_scaled": 0.7, "student": 0.9}))
    assert "than direct with variance scaling" in weak["verdict"]
    assert "temperature" not in printed(as_text(weak), 200)


WITHOUT = ("student", "direct")


def test_a_model_without_a_variance_has_no_nll_and_its_headline_none_either() -> None:
    results = number_results(without_variance=WITHOUT)
    report = quick(results)
    assert "nll" in report["models"]["ensemble"]
    assert "nll" in report["models"]["student_temperature_scaled"]
    for kind in WITHOUT:
        assert {"nll", "crps", "coverage", "width"}.isdisjoint(report["models"][kind])
        assert {"rmse", "mae", "r2"} <= set(report["models"][kind])
    for block in (report["retained_gain"], report["gains"]["student"], report["strongest"]["all"]):
        assert list(block) == ["rmse", "mae"]
    assert list(directions(report, "all")) == ["rmse"]
    assert report["verdict"].startswith("Distillation helped mlp in RMSE. ")
    assert "NLL" not in report["verdict"]
    text = " ".join(printed(as_text(report), 100).split())
    assert "The headline goes by it, in RMSE. " in text
    json.dumps(report, allow_nan=False)


def test_a_metric_that_no_direct_model_has_judges_nothing() -> None:
    kinds = [kind for kind in NOISE if kind.startswith("direct")]
    report = quick(number_results(without_variance=tuple(kinds)))
    assert "nll" in report["models"]["student"]
    assert all("nll" not in of_family for of_family in report["strongest"].values())
    assert report["outcome"] == "helped"


def test_a_given_interval_is_judged_where_there_is_no_variance() -> None:
    results = number_results(without_variance=WITHOUT)
    student = results.students[0]
    forecasts = [
        Forecasts(one.mean, interval=(one.mean - 900, one.mean + 900))
        for one in student.models["student"].forecasts
    ]
    own = replace(student.models["student"], forecasts=forecasts)
    changed = replace(student, models={**student.models, "student": own})
    model = quick(replace(results, students=[changed]))["models"]["student"]
    assert model["coverage"]["mean"] > 0.9
    assert "nll" not in model


@TASK
def test_each_label_or_number_has_its_own_entry(task: str) -> None:
    results, report = RESULTS[task](), report_of(task)
    each = MEASURES[task].each
    assert [one["name"] for one in report["outputs"]] == list(results.outputs)
    assert report["outputs"] == report["students"]["mlp"]["outputs"]
    models = {"ensemble": results.ensemble, **results.students[0].models}
    for kind in ("ensemble", "direct", "student"):
        values = [
            each.values(prediction, labels, None)
            for prediction, labels in zip(models[kind].predictions(results.task), results.labels, strict=True)
        ]
        for i, one in enumerate(report["outputs"]):
            mean = np.mean([v[i] for v in values])
            found = one[each.metric.name][kind]
            assert (found is None) if np.isnan(mean) else found == pytest.approx(mean)
    if task == "multilabel":
        assert report["outputs"][-1] == {
            "name": "never seen",
            "positives": 0.0,
            "ap": dict.fromkeys(("ensemble", "best_member", "direct", "student")),
        }
        positives = np.mean([(labels[:, 0] == 1).sum() for labels in results.labels])
        assert report["outputs"][0]["positives"] == positives


def test_classes_have_their_recalls() -> None:
    results = run_results(seeds=(0,), outputs=tuple("abcdefghij"))
    report, labels = quick(results), results.labels[0]
    for c, one in enumerate(report["outputs"]):
        assert (one["name"], one["rows"]) == ("abcdefghij"[c], (labels == c).sum())
        for kind in ("direct", "student"):
            top = results.students[0].models[kind].probabilities[0].argmax(1)
            assert one["recall"][kind] == pytest.approx((top[labels == c] == c).mean())


@TASK
@pytest.mark.parametrize("width", [80, 110])
def test_tables_keep_numbers_whole(task: str, width: int) -> None:
    report = report_of(task)
    text = printed(as_text(report), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    ensemble = next(line.split() for line in text.splitlines() if line.startswith("ensemble "))
    models = report["models"]["ensemble"]
    assert ensemble[1:] == [m.text(models[m.name]["mean"]) for m in MEASURES[task].metrics]
    for metric in MEASURES[task].compared:
        assert re.search(rf"^  {metric.label} +\+", text, re.MULTILINE)
    words = " ".join(text.split())
    assert MEASURES[task].about in words
    assert f"{report['dataset']['classes']} {MEASURES[task].outputs}; seeds 0, 1." in words
    assert ("smoothing" in words) == (task == "multilabel")


def test_many_labels_are_cut_to_those_that_changed_most() -> None:
    report = json.loads(json.dumps(report_of("multilabel")))
    entry = report["students"]["mlp"]["outputs"][0]
    many = [
        {**entry, "name": f"tag-{i}", "ap": {**entry["ap"], "direct": 0.5, "student": 0.5 + (i - 30) / 100}}
        for i in range(61)
    ]
    report["students"]["mlp"]["outputs"] = many
    text = printed(as_text(report), 100)
    shown = [int(i) for i in re.findall(r"^tag-(\d+) ", text, re.MULTILINE)]
    assert shown == [*range(10), *range(51, 61)]
    assert "The most changed; all are in report.json" in text


@TASK
def test_the_page_has_the_tasks_sections_alone(task: str) -> None:
    report = json.loads(json.dumps(report_of(task)))
    report["students"]["mlp"]["outputs"][0]["name"] = "<b>one</b>"
    drawn = drawings(task)
    own = {"multilabel": ["label_reliability", "labels"], "regression": ["predictions"]}[task]
    assert list(drawn) == ["metrics", "frontier", *own, "uncertainty", "learning_curves"]
    text = render(report, {stem: Drawn([svg(figure, stem)]) for stem, figure in drawn.items()})
    assert text.count('<svg role="img" aria-label=') == text.count("<svg") == len(drawn)
    assert not re.search(r"url\((?!#)|@import|<link|src=", text)
    assert re.findall(r"<script[^>]*>", text) == ["<script>"]
    for metric in MEASURES[task].metrics:
        assert f'<th scope="col">{metric.heading}</th>' in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    assert "<b>one" not in text
    assert f'<h2 id="each">Each of the {MEASURES[task].outputs}</h2>' in text
    tables = text.split("</style>")[1].split("How this was made</h2>")[0]
    assert not re.search("accuracy|Brier|classes", tables)
    assert ("temperature" in tables) == (task == "multilabel")
    score = {"multilabel": "BCE", "regression": "RMSE"}[task]
    assert f'<th scope="col">{score} out of fold</th>' in text
    assert text.count("<td>0.4000</td>") == len(report["members"])
    first = MEASURES[task].metrics[0]
    titles = [axis.get_title() for axis in drawn["frontier"].axes]
    assert titles[0] == f"{first.title}, {'↑' if task == 'multilabel' else '↓'} better"


def test_no_intervals_are_drawn_without_a_variance() -> None:
    kinds = tuple(NOISE)
    results = number_results(seeds=(0,), without_variance=kinds, members=[])
    drawn = draw(results, quick(results))
    assert len(drawn["predictions"].axes) == 2
    assert len(drawings("regression")["predictions"].axes) == 3
    assert [axis.get_title() for axis in drawn["metrics"].axes] == ["RMSE, sd ← better"]
    # Nothing is shaded beside the errors.
    assert not drawn["predictions"].axes[1].collections


def test_the_figure_of_labels_has_the_gains_over_direct() -> None:
    report = report_of("multilabel")
    axis = drawings("multilabel")["labels"].axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert len(names) == 4  # a label without positives has no average precision
    gains = {line.get_label(): np.asarray(line.get_xdata()) for line in axis.lines}
    by_name = {one["name"]: one["ap"] for one in report["outputs"]}
    for name, gain in zip(names, gains["student (distilled)"], strict=True):
        ap = next(ap for full, ap in by_name.items() if name.startswith(full[:20]))
        assert gain == pytest.approx(100 * (ap["student"] - ap["direct"]))
    assert max(map(len, names)) < 40


def test_runs_of_different_tasks_are_not_compared() -> None:
    reports = [("classes", quick(run_results(seeds=(0,)))), ("numbers", report_of("regression"))]
    message = "numbers: expected a run of the same task as classes, classification; got regression"
    with pytest.raises(ValueError, match=message):
        compared(reports)


def test_runs_of_one_task_are_compared(tmp_path: Path) -> None:
    other = quick(number_results(without_variance=WITHOUT))
    columns = compared([("a", report_of("regression")), ("b", other)])
    text = printed(comparison_table(columns, 100), 100)
    assert re.search(r"^  numbers +2 +2 *$", text, re.MULTILINE)
    assert [row for (section, row) in columns[0].cells if section == "RMSE"]
    nll = {row: cell for (section, row), cell in columns[1].cells.items() if section == "NLL"}
    assert nll["ensemble"] != "-"
    assert nll["student (distilled)"] == nll["student - direct"] == nll["kept over direct"] == "-"
    write_comparison(columns, [], tmp_path / "compare.html")
    assert "<th" in (tmp_path / "compare.html").read_text()
    unlike = {**other, "dataset": {**other["dataset"], "classes": 3}}
    notes = differences([("a", report_of("regression"), None), ("b", unlike, None)])
    assert "a and b have other test rows or numbers: their figures are not comparable." in notes
    table = printed(figures_table(report_of("multilabel")), 100)
    assert table.split()[:4] == ["mAP", "%", "kept", "BCE"]


def test_a_searchs_frontier_shows_the_tasks_metrics() -> None:
    kept = {"share": 0.9, "low": 0.8, "high": 1.0, "basis": "labels"}
    none = {"share": None, "low": None, "high": None, "basis": "labels"}
    point = {
        "candidate": "mlp/64",
        "parameters": 10,
        "bytes": 40,
        "latency": None,
        "kept": {"nll": none, "rmse": kept},
        "figures": {"rmse": 0.25},
        "frontier": True,
    }
    found = {
        "task": "regression",
        "points": [point],
        "chosen": "mlp/64",
        "direct": point,
        "ensemble": {"rmse": 0.2},
        "rows": 9,
        "labelled": 9,
        "cost": {
            "trials": {"student": 1, "direct": 1},
            "ended": {"student": 0, "direct": 0},
            "seconds": {"student": 1.0, "direct": 1.0},
            "teacher_rows": 9,
        },
        "verdict": "",
        "notes": [],
    }
    text = "\n".join(lines(found))
    assert re.search(r"kept NLL +kept RMSE +NLL +RMSE\n→ mlp/64 .* - +90 % \[80, 100\] +0\.2500\n", text)
    assert "accuracy" not in text
    assert "agreement" not in text
    # Without a gain of the ensemble there is no share, and the figure has no point.
    without = {
        **found,
        "keep": 0.9,
        "points": [{**point, "share": None, "kept": {"nll": none, "rmse": none}}],
    }
    assert "<svg" in svg(frontier.draw(without), "frontier")


@TASK
def test_copies_are_left_out(task: str) -> None:
    from ensdistill.data.copies import Copies

    results = RESULTS[task]()
    masks = [np.arange(len(y)) < 40 for y in results.labels]
    report = quick(replace(results, copies=[Copies(mask, 40, 0, 0, 0, 0, 0) for mask in masks]))
    fewer = report["without_copies"]["mlp"]["models"]["student"]
    metric = MEASURES[task].metrics[0]
    student = results.students[0].models["student"]
    pairs = zip(student.predictions(results.task), results.labels, strict=True)
    if task == "multilabel":
        values = [metric.of(replace(p, values=p.values[40:]), y[40:], None) for p, y in pairs]
    else:
        values = [metric.of(p.take(np.arange(len(y)) >= 40), y[40:], None) for p, y in pairs]
    assert fewer[metric.name] == pytest.approx(np.mean(values))
    assert "Without the 80 test rows" in printed(as_text(report), 100)


def bad(results: RunResults, **changes: Any) -> Any:
    return lambda: replace(results, **changes)


LABELLED, NUMBERED = label_results(), number_results()
BARE = replace(
    LABELLED.students[0],
    models={kind: model for kind, model in LABELLED.students[0].models.items() if kind not in SMOOTHED},
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            bad(LABELLED, task="ranking"),
            "task: expected one of classification, multilabel, regression; got 'ranking'",
        ),
        (bad(LABELLED, outputs=LABELS[:2]), "outputs: expected 5 names of labels, or none; got 2"),
        (
            bad(LABELLED, dataset={**LABELLED.dataset, "classes": 6}, outputs=[]),
            "seed 0: expected 6 labels; got 5",
        ),
        (bad(LABELLED, students=[BARE]), "models: student 'mlp' needs direct_label_smoothing, .*, too"),
        (
            bad(LABELLED, ensemble=replace(LABELLED.ensemble, thresholds=[np.ones(5)])),
            "thresholds of ensemble: expected 2, one for each seed; got 1",
        ),
        (
            bad(LABELLED, ensemble=replace(LABELLED.ensemble, probabilities=[])),
            "probabilities of ensemble: expected 2",
        ),
        (
            bad(NUMBERED, ensemble=replace(NUMBERED.ensemble, forecasts=[])),
            "forecasts of ensemble: expected 2, .*got 0",
        ),
        (
            bad(NUMBERED, labels=[y[:-1] for y in NUMBERED.labels]),
            r"labels: expected \[120, 2\]; got \[119, 2\]",
        ),
        (
            bad(LABELLED, members=[replace(LABELLED.members[0], temperatures=[])]),
            "temperatures of member 'forest': expected 2",
        ),
    ],
)
def test_results_that_do_not_fit_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_all_tasks_have_measures() -> None:
    assert tuple(MEASURES) == TASKS


@pytest.mark.parametrize(
    ("task", "one", "several"),
    [
        ("classification", "1 class", "3 classes"),
        ("multilabel", "1 label", "3 labels"),
        ("regression", "1 number", "3 numbers"),
    ],
)
def test_one_of_the_outputs_is_singular(task: str, one: str, several: str) -> None:
    assert (MEASURES[task].counted(1), MEASURES[task].counted(3)) == (one, several)
