"""What all figures share: colours and marks, the style, and PNG and SVG. One ink colour for all text and
lines, so that the page can recolour it for light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from ensdistill.report.results import SCALED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1c2128"
# Mid-tones, distinct on white, on near-black and by the colour blind (Okabe & Ito 2008, a little darker or
# lighter); markers repeat it.
COLOURS = {
    "ensemble": "#0a7fc2",
    "best_member": "#4f97a8",
    "direct": "#e07a10",
    "direct_label_smoothing": "#a8842c",
    "distilled_from_best_member": "#c05a96",
    "student": "#0b9a6d",
}
OTHER = "#8b929b"
MARKERS = {
    "ensemble": "D",
    "best_member": "d",
    "direct": "s",
    "direct_label_smoothing": "v",
    "distilled_from_best_member": "^",
    "student": "o",
}
DASHES = {"direct_label_smoothing": "--", "distilled_from_best_member": "-."}
UNSCALED = {scaled: kind for kind, scaled in SCALED.items()}
FEW = 5  # rows below which a bin's accuracy is mostly noise
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "ensdistill",  # the same figure gives the same bytes
}


@contextmanager
def styled() -> Iterator[None]:
    """Within, matplotlib draws in the report's style.

    Raises
    ------
    ModuleNotFoundError
        matplotlib isn't installed; the message holds the command that installs it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the report's figures need matplotlib: pip install 'ensdistill[report]'", name="matplotlib"
        ) from error
    with matplotlib.rc_context(_STYLE):
        yield


def lay_out(figure: Figure) -> Figure:
    """Lay a figure out once; each format would do it again, for half of its time. Returns the figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def png(figure: Figure) -> bytes:
    """On white, at 160 dots per inch."""
    return _saved(figure, format="png", dpi=160, facecolor="white")


def svg(figure: Figure, label: str, **options: Any) -> str:
    """The ``<svg>`` element alone, transparent, its ink set to the surrounding text's colour. Screen readers
    read ``label``, because its letters are drawn."""
    metadata = {"Date": None, "Creator": None}
    text = _saved(figure, format="svg", transparent=True, metadata=metadata, **options).decode()
    text = text[text.index("<svg") + 5 :].replace(INK, "currentColor")
    # Other figures of the page have elements of these names, to which nothing refers.
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)
    return f'<svg role="img" aria-label={quoteattr(label)} {text}'


@dataclass(frozen=True)
class Drawn:
    """A figure in parts, which a page puts side by side where there is room.

    Parameters
    ----------
    panels : list of str
        An ``<svg>`` element for each panel.
    legend : list of (str, str)
        The ``<svg>`` of the mark, and the text, of each entry of the legend beside the panels.
    """

    panels: Sequence[str]
    legend: Sequence[tuple[str, str]] = ()


def in_parts(figure: Figure, label: str) -> Drawn:
    """The panels of a figure that is laid out, each named by ``label`` and its title, and its legends."""
    inches = figure.dpi_scale_trans.inverted()
    axes, panels = list(figure.axes), []
    legends = list(figure.legends)
    for hidden in legends:
        hidden.set_visible(False)
    for axis in axes:
        for other in axes:
            other.set_visible(other is axis)
        box: Any = axis.get_tightbbox()
        box = box.transformed(inches).padded(0.04)
        panels.append(svg(figure, f"{label}: {axis.get_title()}", bbox_inches=box))
    for part in (*axes, *legends):
        part.set_visible(True)
    entries = [
        (_mark(handle, text.get_text()), text.get_text())
        for legend in legends
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
    ]
    return Drawn(panels, entries)


def _mark(handle: Any, label: str) -> str:
    """The mark of a legend's entry, a line with markers, by itself."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(0.34, 0.17))
    line = Line2D([0.1, 0.5, 0.9], [0.5, 0.5, 0.5], markevery=[1], transform=figure.transFigure)
    for name in ("color", "linestyle", "linewidth", "marker", "markersize", "fillstyle", "alpha"):
        getattr(line, f"set_{name}")(getattr(handle, f"get_{name}")())
    figure.add_artist(line)
    return svg(figure, label)


def _saved(figure: Figure, **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def panels(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of panels, and their axes [rows, columns]."""
    # The object interface: no pyplot, hence no global figures and no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def plain_log_ticks(axis: Any, text: Callable[[float], str] = "{:g}".format) -> None:
    """0.2, 1, 5 instead of powers of ten, which a range of less than a decade leaves without labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    wide = low <= 0 or np.log10(high / low) > 2
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
