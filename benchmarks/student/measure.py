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
EQUAL = (BARE, MEMORY, EXACT)
"""The ways that have to end with the same bits."""
CLOSE = 0.01
"""How far apart the mean losses of the other ways may be, relatively: members' logits round by the size of their
batch, and uint8 stores them in 255 steps."""


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
        way's losses are further off than its targets' rounding explains.
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


def compare(case: Case, made: dict[str, Run]) -> dict[str, dict[str, float]]:
    """How far each way's student and mean loss are from the bare loop's, relatively."""
    expected, found = made[BARE], {}
    for name, run in made.items():
        parameters = float((run.parameters - expected.parameters).norm() / expected.parameters.norm())
        loss = abs(run.loss / expected.loss - 1)
        found[name] = {"parameters": parameters, "loss": loss}
        if name in EQUAL and not torch.equal(run.parameters, expected.parameters):
            raise WrongStudent(
                f"{case.name}, {name}: expected the bits of the bare loop's student; its parameters are "
                f"{parameters:.2g} of their size away"
            )
        if not loss <= CLOSE:
            raise WrongStudent(
                f"{case.name}, {name}: its mean loss is {run.loss:.5g}, and that of the bare loop "
                f"{expected.loss:.5g}; expected at most {CLOSE:.0%} between them"
            )
    return found


def _apart(runs: list[Run], others: list[Run]) -> float:
    return median(a.step - b.step for a, b in zip(runs, others, strict=True))


def _making(run: Run) -> float:
    assert run.cost is not None
    return 1e6 * run.cost.making / run.cost.steps
