"""What all figures share: colours and marks, the style, and PNG and SVG. One ink colour for all text and
lines, so that the page can recolour it for light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
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
    panels, legend : list of str
        ``<svg>`` elements: one for each panel, and one for each entry of the legend beside them.
    """

    panels: Sequence[str]
    legend: Sequence[str] = ()


def in_parts(figure: Figure, label: str) -> Drawn:
    """The panels of a figure, each named by ``label`` and its title, and the entries of its legends."""
    from matplotlib.transforms import Bbox

    panels = list(figure.axes)
    parts: list[tuple[Any, ...]] = [(axis,) for axis in panels]
    for legend in figure.legends:
        parts += zip(legend.legend_handles, legend.get_texts(), strict=True)
    found = []
    for part in parts:
        for other in parts:
            for artist in other:
                artist.set_visible(other is part)
        box = (
            Bbox.union([artist.get_tightbbox() for artist in part])
            .transformed(figure.dpi_scale_trans.inverted())
            .padded(0.04)
        )
        name = f"{label}: {part[0].get_title()}" if part[0] in panels else part[1].get_text()
        found.append(svg(figure, name, bbox_inches=box))
    for artist in (artist for part in parts for artist in part):
        artist.set_visible(True)
    return Drawn(found[: len(panels)], found[len(panels) :])


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


def plain_log_ticks(axis: Any) -> None:
    """0.2, 1, 5 instead of powers of ten, which a range of less than a decade leaves without labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    wide = low <= 0 or np.log10(high / low) > 2.5
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
