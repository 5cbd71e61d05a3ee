"""The comparison's table and picture: differences from kd, with intervals over the seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from ensdistill.common.files import atomic_path


def values(rows: list[dict[str, Any]], name: str, method: str, score: str) -> dict[int, float]:
    """A score by seed."""
    own = (row for row in rows if (row["set"], row["method"]) == (name, method))
    return {row["seed"]: row[score] for row in own}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean, and half of the 95 % interval by Student's t; NaN of a single seed."""
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    half = student_t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(half)


def over_kd(rows: list[dict[str, Any]], name: str, method: str, score: str) -> tuple[float, float] | None:
    """The difference from kd, paired by seeds."""
    own, base = (values(rows, name, one, score) for one in (method, "kd"))
    seeds = sorted(own.keys() & base.keys())
    return interval(np.array([own[s] - base[s] for s in seeds])) if seeds else None


def kept(rows: list[dict[str, Any]], name: str, method: str) -> float:
    """The share of the ensemble's gain in scaled NLL over labels that a student keeps."""
    labels, own, ensemble = (
        np.mean(list(values(rows, name, one, "scaled_nll").values()) or [np.nan])
        for one in ("labels", method, "ensemble")
    )
    return float((labels - own) / (labels - ensemble))


def winner(rows: list[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The method of the largest mean kept share over the sets, and all of them."""
    names, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "method"))
    students = [method for method in methods if method not in ("ensemble", "labels")]
    found = {method: float(np.mean([kept(rows, name, method) for name in names])) for method in students}
    known = {method: share for method, share in found.items() if np.isfinite(share)}
    return max(known, key=lambda method: known[method]) if known else "", known


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/methods.md."""
    names, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "method"))
    shares = winner(rows)[1]
    order = sorted(methods, key=lambda method: -shares.get(method, -9))
    order = [one for one in ("ensemble",) if one in methods] + [m for m in order if m != "ensemble"]
    head = ["Method", *(f"{name}: accuracy, NLL - kd's" for name in names), "kept", "OOD AUROC", "ρ"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for method in order:
        cells = [method]
        for name in names:
            accuracy = np.mean(list(values(rows, name, method, "accuracy").values()))
            found = over_kd(rows, name, method, "scaled_nll")
            told = "" if found is None else f", {found[0]:+.3f} ± {found[1]:.3f}"
            cells.append(f"{100 * accuracy:.1f}{told}")
        share = f"{100 * shares[method]:.0f} %" if method in shares else ""
        means = [
            np.mean([np.mean(list(values(rows, name, method, score).values())) for name in names])
            for score in ("ood_auroc", "disagreement_rank")
        ]
        lines.append(" | ".join([*cells, share, *(f"{mean:.2f}" for mean in means)]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a picture of the differences from kd: one panel a set."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    shares = winner(rows)[1]
    methods = sorted(shares, key=lambda method: shares[method])
    figure = Figure(figsize=(3.6 * len(names) + 2, 0.26 * len(methods) + 1.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for place, method in enumerate(methods):
            if (found := over_kd(rows, name, method, "scaled_nll")) is not None:
                panel.errorbar(found[0], place, xerr=np.nan_to_num(found[1]), fmt="o", color="#0072B2", ms=4)
        panel.axvline(0, color="#999999", lw=1)
        panel.set_yticks(range(len(methods)), methods, fontsize=8)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("NLL above kd's, nats", fontsize=8)
    figure.suptitle("Methods: NLL after one temperature, 95 % intervals over seeds", fontsize=11)
    with atomic_path(path) as file:
        figure.savefig(file, format="png")
