"""The report as one HTML file that needs nothing beside it, and the writing of everything the report leaves
on disk."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensdistill.common import files
from ensdistill.report import cells, figures, footnotes, outputs, samples, sections, table
from ensdistill.report.captions import SEARCH, WHOLE, shown_figures
from ensdistill.report.drawing import Drawn, in_parts, lay_out, png, styled, svg
from ensdistill.report.frontier import draw
from ensdistill.report.judge import judge
from ensdistill.report.measures import MEASURES, held_out_key
from ensdistill.report.results import SHARED_KINDS, RunResults
from ensdistill.report.verdict import METRIC_LABELS, headline, kind_labels

_CONTENTS = (
    ("models", "Models"),
    ("gain", "Retained gain"),
    ("frontier", "Frontier"),
    ("members", "Members"),
    ("confidence", "Confidence"),
    ("each", "Each of the {outputs}"),
    ("differences", "Ensemble and student"),
    ("costs", "Costs and training"),
    ("making-of", "How this was made"),
)


def check_packages() -> None:
    """Raise ModuleNotFoundError where matplotlib or Jinja2 is missing, before the work of a job."""
    template("page.html.j2")
    with styled():
        pass


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
    drawn |= {
        f"{SEARCH}{name}": lay_out(draw(seeds[0])) for name, seeds in report.get("searches", {}).items()
    }
    for stem, figure in drawn.items():
        files.write_bytes(folder / "figures" / f"{stem}.png", png(figure))
    drawings = {
        stem: Drawn([svg(figure, stem)]) if stem in WHOLE else in_parts(figure, stem.replace("_", " "))
        for stem, figure in drawn.items()
    }
    files.write_bytes(folder / "report.html", render(report, drawings).encode())
    files.write_json(folder / "report.json", report)
    return report


def render(report: dict[str, Any], drawings: Mapping[str, Drawn]) -> str:
    """The page.

    Parameters
    ----------
    report : dict
        The return value of `judge`.
    drawings : mapping of str to Drawn
        By figure name (see `figures.draw`); trusted, unlike every other string, which is escaped.
    """
    table.check_version(report)
    measures = MEASURES[report["task"]]
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
        measures=measures,
        labels=kind_labels(report["task"]),
        metric_labels=METRIC_LABELS,
        bases=("direct", "strongest alternative"),
        contents=[(anchor, name.format(outputs=measures.outputs)) for anchor, name in _CONTENTS],
        names=[one["name"] for one in next(iter(report["students"].values()))["outputs"]],
        figures=shown_figures(report["task"], drawings),
        sections=sections.sections(report),
        notes=footnotes.footnotes(report),
        held_out=held_out_key(report["task"]),
        cells=cells,
        footnotes=footnotes,
        outputs=outputs,
        texts=sections,
        samples=samples,
        **script(),
    )


def script() -> dict[str, Any]:
    """The page's script, and its digest: the page forbids all others, whatever a name in the data holds."""
    from markupsafe import Markup

    text = (Path(__file__).parent / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


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
