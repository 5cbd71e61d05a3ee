"""The report as one HTML file that needs nothing beside it, and the writing of everything the report leaves
on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensdistill.common import files
from ensdistill.common.tasks import Task
from ensdistill.report import figures, table
from ensdistill.report.drawing import FEW, png, svg
from ensdistill.report.frontier import draw
from ensdistill.report.judge import judge
from ensdistill.report.measures import MEASURES
from ensdistill.report.results import SHARED_KINDS, RunResults
from ensdistill.report.verdict import METRIC_LABELS, headline, kind_labels

_CAPTIONS = {
    "metrics": (
        "Every model",
        "Large marks are means over seeds, small dots the seeds; a hollow mark is the model of that colour "
        "after {scaling} scaling.",
    ),
    "reliability": (
        "Reliability",
        "Accuracy of the test rows whose top label has about that confidence, all seeds together; on the "
        "dashed line the confidence "
        f"is right. A mark's area follows its number of rows; faint ones stand for fewer than {FEW}.",
    ),
    "label_reliability": (
        "Reliability",
        "The share of test rows that have a label, among those to which a model gives about that "
        "probability; all labels and seeds together. On the dashed line the probability is right. A mark's "
        f"area follows its number of rows; faint ones stand for fewer than {FEW}.",
    ),
    "labels": (
        "Average precision of labels",
        "The gain of ensemble and student over direct, in points, the mean over seeds. Where there are many "
        "labels, those with the largest change. In brackets the number of positive test rows.",
    ),
    "predictions": (
        "Predicted and true",
        "Left test rows of the first seed, a sample where there are many; each number in its standard "
        "deviations, where there are several. Beside them the student's errors; the band is its interval of "
        "90 %, the mean of rows with about that prediction. Right, of models with a variance, the share of "
        "labels within the central Gaussian interval of each probability, the mean over seeds: below the "
        "dashed line the intervals are too narrow.",
    ),
    "learning_curves": (
        "Learning curves",
        "First seed. The objectives differ, so the losses on the left compare only with themselves. The "
        "test rows are watched for this "
        "picture; nothing is chosen by it.",
    ),
}

_SEARCH = "search_"  # before a student's name: the figure of its search


def write_report(results: RunResults, folder: Path | str) -> dict[str, Any]:
    """Write ``figures/*.png``, ``report.html`` and, last, ``report.json`` into ``folder``, each atomically.

    Parameters
    ----------
    results : RunResults
    folder : path
        Created where it is missing.

    Returns
    -------
    dict
        The content of report.json; its schema stands in ``docs/report-json.md``.

    Raises
    ------
    ModuleNotFoundError
        matplotlib or Jinja2 isn't installed; nothing has been written.
    """
    folder = Path(folder)
    template("page.html.j2")
    report = judge(results)
    drawn = figures.draw(results, report)
    drawn |= {f"{_SEARCH}{name}": draw(seeds[0]) for name, seeds in report.get("searches", {}).items()}
    for stem, figure in drawn.items():
        files.write_bytes(folder / "figures" / f"{stem}.png", png(figure))
    files.write_bytes(
        folder / "report.html",
        render(report, {stem: svg(figure) for stem, figure in drawn.items()}).encode(),
    )
    files.write_json(folder / "report.json", report)
    return report


def render(report: dict[str, Any], drawings: Mapping[str, str]) -> str:
    """The page.

    Parameters
    ----------
    report : dict
        The return value of `judge`.
    drawings : mapping of str to str
        ``<svg>`` elements by figure name (see `figures.draw`); trusted, unlike every other string, which is
        escaped.
    """
    from markupsafe import Markup

    table.check_version(report)
    students = [
        {
            "name": name,
            **block,
            "look": table.look(block),
            "headline": (title := headline(name, block)),
            "detail": _detail(block["verdict"], title),
        }
        for name, block in table.by_outcome(report)
    ]
    return template("page.html.j2").render(
        report=report,
        students=students,
        shared_kinds=SHARED_KINDS,
        measures=MEASURES[report["task"]],
        labels=kind_labels(report["task"]),
        metric_labels=METRIC_LABELS,
        bases=("direct", "strongest alternative"),
        figures=[(*_caption(stem, report["task"]), Markup(drawing)) for stem, drawing in drawings.items()],
        notes=table.footnotes(report),
        format=table,
    )


def _caption(stem: str, task: Task) -> tuple[str, str]:
    if stem == "latency":
        first = MEASURES[task].metrics[0]
        side = "up" if first.sign > 0 else "down"
        text = f"Left and {side} is better. The whole batch is timed, on the machine named below."
        return f"Latency against {first.label}", text
    if not stem.startswith(_SEARCH):
        title, text = _CAPTIONS[stem]
        return title, text.replace("{scaling}", MEASURES[task].scaling)
    return (
        f"The search for {stem.removeprefix(_SEARCH)}",
        "First seed. What the best student of each size keeps on the validation rows, with 95 % intervals; "
        "the chosen one is ringed.",
    )


def _detail(verdict: str, title: str) -> str:
    rest = verdict.removeprefix(title).lstrip(".: ")
    return rest[:1].upper() + rest[1:]


def template(name: str) -> Any:
    """The template of a page."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the report's page needs Jinja2: pip install 'ensdistill[report]'", name="jinja2"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
