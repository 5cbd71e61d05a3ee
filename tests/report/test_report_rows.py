"""Scores of single rows, what is made of them, and the samples that are shown."""

from __future__ import annotations

import base64
import io
import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from report_cases import run_results
from report_task_cases import label_results, number_results
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix

from ensdistill.data.samples import Lazy, as_samples
from ensdistill.report import Forecasts, LabelProbabilities, judge
from ensdistill.report.cells import milliseconds
from ensdistill.report.differences import SHOWN_ROWS, furthest_rows, judge_agreement
from ensdistill.report.drawing import in_parts, lay_out, panels, styled
from ensdistill.report.measures import MEASURES
from ensdistill.report.row_scores import ROW_SCORES, divergence, entropy
from ensdistill.report.samples import COARSE, FIELDS, LETTERS, is_coarse, shown_sample
from ensdistill.report.sections import contributions
from ensdistill.report.uncertainty import SHARES, judge_uncertainty, rank_correlation, selective

RNG = np.random.default_rng(3)


def test_divergence_and_entropy_have_their_closed_forms() -> None:
    p, q = RNG.dirichlet(np.ones(5), 40), RNG.dirichlet(np.ones(5), 40)
    assert divergence(p, q) == pytest.approx((p * np.log(p / q)).sum(1), abs=1e-12)
    assert (divergence(p, p) == 0).all()
    assert entropy(np.full((2, 7), 1 / 7)) == pytest.approx(np.log([7, 7]))
    assert np.isfinite(divergence(np.eye(3), np.eye(3)[[1, 2, 0]])).all()


def test_the_spread_of_members_is_zero_for_equal_ones_and_known_for_opposite_ones() -> None:
    half = np.array([0.5, 0.5])
    classes, numbers = ROW_SCORES["classification"], ROW_SCORES["regression"]
    sure = np.eye(2)
    assert classes.spread([sure, sure], half, np.zeros(2, int)) == pytest.approx(0)
    assert classes.spread([sure, sure[::-1]], half, np.zeros(2, int)) == pytest.approx(np.log(2))
    labels = ROW_SCORES["multilabel"]
    one, other = (LabelProbabilities(np.full((2, 3), p)) for p in (0.0, 1.0))
    assert labels.spread([one, other], half, np.zeros((2, 3), np.int8)) == pytest.approx(3 * np.log(2))
    truth = RNG.normal(size=(50, 2))
    low, high = Forecasts(truth - truth.std(0)), Forecasts(truth + truth.std(0))
    assert numbers.spread([low, high], half, truth) == pytest.approx(1)


def test_errors_of_certain_rows_do_not_depend_on_the_order_of_equal_rows() -> None:
    uncertainty, error = RNG.integers(0, 5, 83).astype(float), RNG.random(83)
    order = RNG.permutation(83)
    found = selective(uncertainty, error, None)
    assert selective(uncertainty[order], error[order], None) == pytest.approx(found)
    assert found[-1] == pytest.approx(error.mean())
    # A weight is a number of equal rows.
    times = RNG.integers(1, 4, 83)
    repeated = selective(np.repeat(uncertainty, times), np.repeat(error, times), None)
    assert selective(uncertainty, error, times.astype(float)) == pytest.approx(repeated)


def test_certain_rows_that_are_right_have_no_error() -> None:
    uncertainty = np.arange(100.0)
    curve = selective(uncertainty, (uncertainty >= 80).astype(float), None)
    assert curve[SHARES.index(0.8)] == 0
    assert curve[-1] == pytest.approx(0.2)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    one, other = RNG.integers(0, 6, 70).astype(float), RNG.normal(size=70)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0


def test_classes_are_counted_as_in_a_confusion_matrix() -> None:
    results = run_results(seeds=(0, 1))
    student, found = results.students[0], judge_agreement(results.students[0], results)
    e, s = (
        np.concatenate(model.probabilities).argmax(1)
        for model in (results.ensemble, student.models["student"])
    )
    y = np.concatenate(results.labels)
    expected = confusion_matrix(e, s, labels=range(10))
    assert found["matrix"] == expected.tolist()
    assert found["mean"] == pytest.approx((e == s).mean())
    assert sum(pair["rows"] for pair in found["pairs"]) == (e != s).sum()
    for name, rows in {
        "both_right": (e == y) & (s == y),
        "ensemble_alone_right": (e == y) & (s != y),
        "student_alone_right": (e != y) & (s == y),
        "both_wrong": (e != y) & (s != y),
    }.items():
        assert found[name] == rows.sum(), name
    pair = found["pairs"][0]
    rows = (e == int(pair["ensemble"])) & (s == int(pair["student"]))
    assert (pair["ensemble_right"], pair["student_right"]) == ((e == y)[rows].sum(), (s == y)[rows].sum())


def test_labels_and_numbers_are_compared_one_by_one() -> None:
    results = label_results(seeds=(0,))
    student = results.students[0].models["student"].predictions("multilabel")[0].predicted
    ensemble = results.ensemble.predictions("multilabel")[0].predicted
    found = judge_agreement(results.students[0], results)
    for c, one in enumerate(found["labels"]):
        assert one["both"] == (ensemble & student)[:, c].sum()
        assert one["ensemble_alone"] == (ensemble & ~student)[:, c].sum()
    assert found["mean"] == pytest.approx((ensemble == student).mean())
    numbers = number_results(seeds=(0,))
    apart = numbers.students[0].models["student"].forecasts[0].mean - numbers.ensemble.forecasts[0].mean
    of_numbers = judge_agreement(numbers.students[0], numbers)
    for d, one in enumerate(of_numbers["numbers"]):
        assert one["difference"] == pytest.approx(np.sqrt((apart[:, d] ** 2).mean()))
        assert one["offset"] == pytest.approx(apart[:, d].mean())
    scaled = apart / numbers.labels[0].std(0)
    assert of_numbers["mean"] == pytest.approx(np.sqrt((scaled**2).mean()))


def test_the_furthest_row_comes_first_and_a_row_of_two_test_sets_once() -> None:
    results = run_results(seeds=(0, 1))
    student = results.students[0]
    arrays = [p.copy() for p in student.models["student"].probabilities]
    for s, row in ((0, 12), (1, 40)):
        top = int(results.ensemble.probabilities[s][row].argmax())
        arrays[s][row] = np.where(np.arange(10) == (top + 1) % 10, 1 - 9e-9, 1e-9)
    models = {**student.models, "student": replace(student.models["student"], probabilities=arrays)}
    uids = [np.arange(697) + 1000, np.arange(697) + 2000]
    uids[1][40] = uids[0][12]  # the same sample
    results = replace(results, students=[replace(student, models=models)], uids=uids)
    found = furthest_rows(results.students[0], results)
    assert len(found) == SHOWN_ROWS
    assert (found[0]["row"], found[0]["uid"]) in {(12, 1012), (40, 1012)}
    assert [one["uid"] for one in found].count(1012) == 1
    assert all(a["distance"] >= b["distance"] for a, b in itertools.pairwise(found))
    row = found[0]["row"]
    assert found[0]["label"] == str(results.labels[found[0]["seed"]][row])
    assert found[0]["student"].endswith("(100 %)")
    assert "png" in found[0]["sample"]


def test_a_row_of_labels_shows_those_that_are_furthest_apart() -> None:
    results = label_results(seeds=(0,))
    ensemble = results.ensemble.predictions("multilabel")[0].values
    ensemble[5] = [0.99, 0.98, 0.01, 0.4, 0.97]
    student = results.students[0].models["student"].predictions("multilabel")[0].values
    student[5] = [0.01, 0.98, 0.01, 0.6, 0.5]
    found = furthest_rows(results.students[0], results)[0]
    assert found["row"] == 5
    assert found["ensemble"] == "cat (99 %), never seen (97 %), bird (40 %)"
    assert found["student"] == "cat (1 %), never seen (50 %), bird (60 %)"


def test_uncertainty_of_the_ensemble_ranks_as_itself() -> None:
    results = label_results()
    found = judge_uncertainty(results.students[0], results)
    assert found is not None
    assert found["ensemble"]["rank_with_ensemble"] == pytest.approx(1)
    assert found["direct"]["rank_with_ensemble"] < found["student"]["rank_with_ensemble"] < 1
    predictions = results.students[0].models["student"].predictions("multilabel")
    wrong = [
        ROW_SCORES["multilabel"].error(p, y).mean() for p, y in zip(predictions, results.labels, strict=True)
    ]
    assert found["student"]["error"] == pytest.approx(np.mean(wrong))
    silent = number_results(without_variance=("student",))
    assert judge_uncertainty(silent.students[0], silent) is None


@pytest.mark.parametrize("make", [run_results, number_results])
def test_a_contribution_is_the_gain_over_the_other_members(make: Any) -> None:
    results = make(seeds=(0,))
    report = judge(results, resamples=2000)
    for metric in MEASURES[results.task].deciding:
        for member, one in zip(results.members, report["members"], strict=True):
            assert member.others is not None
            others = [
                metric.of(p, y, None)
                for p, y in zip(member.others.predictions(results.task), results.labels, strict=True)
            ]
            lead = metric.sign * (report["models"]["ensemble"][metric.name]["mean"] - np.mean(others))
            found = one["contribution"][metric.name]
            assert found["mean"] == pytest.approx(lead)
            assert found["ci95"][0] <= lead <= found["ci95"][1]
    alone = [replace(member, others=None) for member in results.members]
    assert "contribution" not in judge(replace(results, members=alone), resamples=2000)["members"][0]


def test_shares_of_members_are_shown_with_their_errors_and_costs() -> None:
    report = judge(run_results(seeds=(0, 1)), resamples=2000)
    member = report["members"][2]
    assert member["shapley"]["accuracy"] == {
        "mean": pytest.approx(0.205),
        "per_seed": pytest.approx([0.2, 0.21]),
        "error": 0.0,
    }
    assert member["shapley"]["nll"]["error"] == pytest.approx(0.003 / np.sqrt(2))
    section = list(contributions(report))[1]
    svc = dict(zip(section.columns, section.rows[2], strict=True))
    assert (svc["accuracy"], svc["NLL"]) == ("+20.50", "+0.400 (0.002)")
    assert svc["ms, 256 rows"] == milliseconds(member["latency_ms"]["batch_256"]["p50"])
    assert svc["bytes"] == "120k"


def test_members_without_a_measurable_gain_are_named_with_their_time() -> None:
    report = judge(run_results(seeds=(0,)), resamples=2000)
    for member in report["members"]:
        for gain in member["contribution"].values():
            gain["beyond_interval"] = member["name"] != "svc"
    section = next(contributions(report))
    assert "Without svc the ensemble is not measurably worse; it takes 25 % of the" in section.about
    for gain in report["members"][1]["contribution"].values():
        gain["beyond_interval"] = False
    about = next(contributions(report)).about
    names = ", ".join(member["name"] for member in report["members"][1:3])
    assert f"Without any one of {names} the ensemble is not measurably worse; together they take" in about
    for gain in report["members"][1]["contribution"].values():
        gain["beyond_interval"] = True
    for gain in report["members"][2]["contribution"].values():
        gain["beyond_interval"] = True
    section = next(contributions(report))
    assert "Every member is worth its cost" in section.about


def test_samples_of_all_kinds_are_shown() -> None:
    text = shown_sample(as_samples(["short", "long " * 200]), 1)
    assert (len(text["text"]), text["more"]) == (LETTERS, 1000 - LETTERS)
    frame = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", "y"]})
    assert shown_sample(as_samples(frame), 1)["fields"][1] == ["b", "y"]
    gap = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", None]})
    assert shown_sample(as_samples(gap), 1)["fields"] == [["a", "-"], ["b", "-"]]
    wide = shown_sample(np.arange(100.0).reshape(2, 50), 1)
    assert (len(wide["fields"]), wide["more"], wide["fields"][0]) == (FIELDS, 50 - FIELDS, ["0", "50"])
    both = shown_sample(as_samples({"words": ["one", "two"], "n": np.arange(2.0)[:, None]}), 1)
    assert both["text"] == "two"
    plain = shown_sample(as_samples({"m": np.ones((2, 1)), "n": np.arange(2.0)[:, None]}), 1)
    assert plain["fields"] == [["m 0", "1"], ["n 0", "1"]]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_keep_their_pixels(channels: int) -> None:
    pixels = RNG.integers(0, 256, (2, channels, 9, 11)).astype(np.uint8)
    for batch in (pixels, torch.from_numpy(pixels / 255.0), Lazy(list(pixels.transpose(0, 2, 3, 1)))):
        shown = Image.open(io.BytesIO(base64.b64decode(shown_sample(as_samples(batch), 1)["png"])))
        expected = pixels[1].transpose(1, 2, 0).astype(float).squeeze()
        if not isinstance(batch, np.ndarray) and not isinstance(batch, Lazy):  # numbers have their own range
            expected = (expected - expected.min()) / np.ptp(expected) * 255
        assert np.asarray(shown).astype(float) == pytest.approx(expected, abs=0.51)


def test_a_photograph_is_smoothed_and_a_few_pixels_are_not() -> None:
    for height, width, coarse in ((COARSE, 9, True), (9, COARSE + 1, False), (400, 300, False)):
        pixels = RNG.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
        assert is_coarse(shown_sample(as_samples(Lazy(list(pixels))), 0)["png"]) is coarse


def test_a_figure_in_parts_is_whole_again() -> None:
    with styled():
        figure, axes = panels(6, 3, 1, 2)
        for axis, title, count in zip(axes[0], ("one", "two"), (1, 40), strict=True):
            for i in range(count):
                axis.plot([0, 1], [i, i + 1], "o-", label="a <b>")
            axis.set_title(title)
        figure.legend(
            *(part[:1] for part in axes[0, 0].get_legend_handles_labels()), loc="outside lower center"
        )
        drawn = in_parts(lay_out(figure), "curves")
    assert [name for _, name in drawn.legend] == ["a <b>"]
    assert 'aria-label="a &lt;b&gt;"' in drawn.legend[0][0]
    assert len(drawn.panels) == len(figure.axes) == 2
    assert all(axis.get_visible() for axis in figure.axes)
    assert 'aria-label="curves: two"' in drawn.panels[1]
    # Each panel holds its own lines alone.
    assert len(drawn.panels[1]) > 1.5 * len(drawn.panels[0])
    narrow = re.search(r'width="([\d.]+)pt"', drawn.panels[0])
    assert narrow is not None
    assert float(narrow[1]) < 6 * 72 / 1.8
