"""The time from a CSV file to a report, of a user's own command: tables of 10 000 and of 300 000 rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.judgement import Goal
from benchmarks.quality.sets import content

MINUTES = {10_000: 5.0, 300_000: 30.0}  # at most, by rows
SEARCH = 3.0  # minutes of the search for the student's size
TARGET = "delay"
ROOT = Path(__file__).resolve().parents[2]


def command(table: Path, folder: Path) -> list[str]:
    """A run of one seed whose student's size is searched for."""
    words = [
        str(table),
        "--target",
        TARGET,
        "--seeds",
        "1",
        "--folder",
        str(folder),
        "--minutes",
        f"{SEARCH:g}",
        "--keep",
        "0.95",
    ]
    return [sys.executable, "-m", "ensdistill", "run", *words]


def measured(rows: int, note: Callable[[str], None]) -> float:
    """Minutes from the CSV file of so many flights to the report.

    Raises
    ------
    RuntimeError
        The run failed; with the end of its errors.
    """
    samples, labels, classes = content("flights")
    chosen = np.random.default_rng(0).permutation(len(labels))[:rows]
    frame = samples.iloc[chosen].assign(**{TARGET: np.asarray(classes)[labels[chosen]]})
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "flights.csv"
        frame.to_csv(table, index=False)
        begun = time.perf_counter()
        run = subprocess.run(
            command(table, Path(folder) / "runs"),
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        minutes = (time.perf_counter() - begun) / 60
        if run.returncode:
            raise RuntimeError(f"a run of {rows} rows failed:\n{run.stderr[-2000:]}")
    note(f"{rows:,} rows: {minutes:.1f} minutes")
    return minutes


def goals(found: dict[str, Any]) -> list[Goal]:
    """One for each number of rows, by the minutes in ``found``."""
    return [
        Goal(
            f"a table of {int(rows):,} rows from CSV to report within {MINUTES[int(rows)]:g} minutes",
            minutes <= MINUTES[int(rows)],
            f"{minutes:.1f} minutes, {SEARCH:g} of them for the search",
        )
        for rows, minutes in found.items()
    ]
