"""The figures: marks that must not be mistaken for each other."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from report_cases import HELPED, model, run_results

from ensdistill.job.evaluate import TRAINED_KINDS
from ensdistill.report import RunResults, cost_figure, judge, metrics
from ensdistill.report.drawing import FEW, in_parts, lay_out, styled
from ensdistill.report.figures import draw


def with_all_curves() -> RunResults:
    results = run_results({}, {"student": 0.955, "direct": 0.93})
    curve = results.students[0].curves["direct"]
    return replace(
        results, students=[replace(s, curves=dict.fromkeys(TRAINED_KINDS, curve)) for s in results.students]
    )


@pytest.fixture(scope="module")
def figures():
    results = with_all_curves()
    return draw(results, judge(results))


def test_every_curve_has_its_own_style_and_the_legend_is_beside_them(figures):
    figure = figures["learning_curves"]
    for axis in figure.axes:
        assert len({(to_hex(line.get_color())) for line in axis.lines}) == len(axis.lines) == 4
        assert axis.get_legend() is None
    assert [len(legend.texts) for legend in figure.legends] == [4]


def test_students_have_names_and_all_models_are_in_the_legend(figures):
    figure = figures["frontier"]
    assert len(figure.axes) == 4  # accuracy and NLL, against bytes and latency
    for axis in figure.axes:
        assert sorted(text.get_text() for text in axis.texts) == ["cnn", "mlp"]
        # Students that are as good have the same place, and their names stand on two lines.
        assert {text.get_verticalalignment() for text in axis.texts} == {"top", "bottom"}
        # A dotted line joins each student to its direct model, of the same cost.
        joined = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert [len(set(line.get_xdata())) for line in joined] == [1, 1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "student (distilled)",
        "direct",
        "best member",
        "ensemble",
        "member",
        "none is cheaper and better",
    ]


def test_a_scaled_model_has_the_same_mark_but_hollow(figures):
    axis = figures["metrics"].axes[0]
    names = {
        round(y): text.get_text() for y, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    }
    marks = {
        names[round(float(line.get_ydata()[0]))]: (
            line.get_marker(),
            to_hex(line.get_color()),
            line.get_fillstyle(),
        )
        for line in axis.lines
        if line.get_marker() != "."
    }
    assert marks["mlp: student, temperature scaled"] == (*marks["mlp: student (distilled)"][:2], "none")
    assert marks["mlp: student (distilled)"][2] == "full"
    of_mlp = [look for name, look in marks.items() if name.startswith("mlp: ")]
    assert len(set(of_mlp)) == len(of_mlp) == 8


def test_bins_of_a_few_rows_are_faint():
    results = run_results(HELPED)
    # Four rows of one seed stand alone in their bin.
    arrays = [p.copy() for p in results.ensemble.probabilities]
    arrays[0][:4] = np.r_[0.25, np.full(9, 0.75 / 9)]
    results = replace(results, ensemble=model("ensemble", 0.9, results.labels, probabilities=arrays))
    bins = metrics.reliability(np.concatenate(arrays), np.concatenate(results.labels))
    assert (bins.count[bins.count > 0] < FEW).sum() == 1
    axis = draw(results, judge(results))["reliability"].axes[0]
    faint = [
        points
        for collection in axis.collections
        if collection.get_alpha() < 0.5
        for points in collection.get_offsets()
    ]
    assert [float(x) for x, _ in faint] == pytest.approx([0.25])
    assert not any(np.isclose(line.get_xdata(), 0.25).any() for line in axis.lines)


def test_a_frontier_without_any_known_cost_is_empty():
    latency = {batch: {"p50": None} for batch in ("batch_1", "batch_256")}
    model = {"bytes": 0, "latency_ms": latency, "accuracy": {"mean": 0.9}}
    with styled():
        figure = cost_figure.draw([cost_figure.Mark("student", model)], "classification")
        assert len(in_parts(lay_out(figure), "frontier").panels) == 1
    assert not figure.axes[0].lines


def test_a_search_alone_has_no_frontier_of_latency():
    quality = {"bytes": 10, "accuracy": {"mean": 0.9}}
    found = {"bytes": 20, "accuracy": 0.8, "latency_ms": {"batch_1": {"p50": 0.1}}}
    untimed = {**quality, "latency_ms": {"batch_1": {"p50": None}}}
    marks = [cost_figure.Mark(cost_figure.CANDIDATE, found), cost_figure.Mark("student", untimed)]
    with styled():
        figure = cost_figure.draw(marks, "classification")
    assert [axis.get_xlabel() for axis in figure.axes] == ["bytes"]
