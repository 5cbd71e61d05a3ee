"""The result of ``ensdistill cache contributions``."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from ensdistill.student.contributions import Contributions

HEADINGS = {
    "divergence": "KL, nats",
    "accuracy": "accuracy, %",
    "nll": "NLL",
    "distance": "distance, σ",
    "rmse": "RMSE, σ",
}


def document(found: Contributions) -> dict[str, Any]:
    """The JSON document."""
    members = {
        name: {
            "weight": float(found.weights[k]),
            **{
                metric: {
                    "leave_one_out": None if np.isnan(out := found.leave_one_out[k, m]) else float(out),
                    "shapley": float(found.shapley[k, m]),
                    "error": float(found.errors[k, m]),
                }
                for m, metric in enumerate(found.metrics)
            },
        }
        for k, name in enumerate(found.names)
    }
    return {"rows": found.rows, "labelled": found.labelled, "members": members}


def table(found: Contributions) -> Table:
    """The same for people."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    made.add_column("member")
    made.add_column("weight", justify="right")
    for metric in found.metrics:
        made.add_column(f"without it\n{HEADINGS[metric]}", justify="right")
        made.add_column(f"share\n{HEADINGS[metric]}", justify="right")
    for k, name in enumerate(found.names):
        cells = [name, f"{found.weights[k]:.2f}"]
        for m, metric in enumerate(found.metrics):
            scale, digits = (100, 2) if metric == "accuracy" else (1, 4)
            out, share, error = (
                scale * one[k, m] for one in (found.leave_one_out, found.shapley, found.errors)
            )
            cells.append("-" if np.isnan(out) else f"{out:+.{digits}f}")
            cells.append(f"{share:+.{digits}f}" + (f" ({error:.{digits}f})" if error else ""))
        made.add_row(*cells)
    return made
