"""One student trained in every way, in rotation; the ways that have to agree are compared before they are
timed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.student.contenders import InMemory, Run, bare, trained
from benchmarks.student.models import Case
from ensdistill import Ensemble, Rows, cache_targets
from ensdistill.student import OnlineTeachers

BARE, MEMORY, EXACT, CODES, ONLINE = (
    "bare loop",
    "targets in memory",
    "cache, fp32",
    "cache, uint8",
    "online teachers",
)
CLOSE = 0.02
"""Of the distance that the parameters move: how far apart students of targets that are rounded otherwise may
end. Members' logits round by the size of their batch, and uint8 stores them in 255 steps."""


class WrongStudent(Exception):
    """A way to train ended with another student."""


def measure(
    case: Case, rounds: int, folder: Path, note: Callable[[str], None], online: bool = True
) -> dict[str, Any]:
    """Microseconds of a step each way: medians over rounds, and medians of the differences within a round.

    Raises
    ------
    WrongStudent
        The bare loop, the targets in memory and the exact cache differ in one bit of the student; or another
        way is further off than its targets' rounding explains.
    """
    rows = Rows(case.inputs(), np.arange(case.rows), np.full(case.rows, -100))
    ensemble = Ensemble.from_members(case.teachers())
    exact = cache_targets(ensemble, rows, folder / "exact", codec="fp32")
    codes = cache_targets(ensemble, rows, folder / "codes")
    logits = torch.from_numpy(exact.gather_logits(rows.uids))
    ways: dict[str, Callable[[], Run]] = {
        BARE: lambda: bare(case, rows, logits, ensemble),
        MEMORY: lambda: trained(case, rows, InMemory(logits, ensemble)),
        EXACT: lambda: trained(case, rows, exact),
        CODES: lambda: trained(case, rows, codes),
    }
    if online:
        ways[ONLINE] = lambda: trained(case, rows, OnlineTeachers(ensemble))
    names, runs = [*ways], {name: [] for name in ways}
    for round_ in range(rounds + 1):  # the first warms up, and is compared
        first = round_ % len(names)
        made = {name: ways[name]() for name in names[first:] + names[:first]}
        if round_ == 0:
            differences = compare(case, made)
        else:
            for name, run in made.items():
                runs[name].append(run)
        note(f"  {case.name}: round {round_} of {rounds}")
    shutil.rmtree(folder / "exact")
    shutil.rmtree(folder / "codes")
    return {
        "student": case.name,
        "parameters": sum(p.numel() for p in case.student().parameters()),
        "batch": case.batch,
        "classes": case.classes,
        "members": case.members,
        "steps": case.steps,
        "differences": differences,
        "us_step": {name: median(run.step for run in found) for name, found in runs.items()},
        "us_all": {name: [run.step for run in found] for name, found in runs.items()},
        "us_over_bare": {name: _apart(runs[name], runs[BARE]) for name in names if name != BARE},
        "over_memory": {
            name: median(a.step / b.step for a, b in zip(runs[name], runs[MEMORY], strict=True)) - 1
            for name in (EXACT, CODES)
        },
        "us_targets": {name: median(map(_making, runs[name])) for name in names if name != BARE},
    }


def compare(case: Case, made: dict[str, Run]) -> dict[str, float]:
    """How far the students of one round are from the bare loop's, in shares of the distance that it moved."""
    torch.manual_seed(0)
    expected = made[BARE].parameters
    scale = float(expected.norm())
    found = {name: float((run.parameters - expected).norm()) / scale for name, run in made.items()}
    for name, difference in found.items():
        allowed = CLOSE if name in (CODES, ONLINE) else 0.0
        if not difference <= allowed:
            raise WrongStudent(
                f"{case.name}, {name}: its student is {difference:.2g} of its size from the bare loop's; "
                f"expected at most {allowed:g}"
            )
    return found


def _apart(runs: list[Run], others: list[Run]) -> float:
    return median(a.step - b.step for a, b in zip(runs, others, strict=True))


def _making(run: Run) -> float:
    assert run.cost is not None
    return 1e6 * run.cost.making / run.cost.steps
