"""The end of ``ensdistill tune``: the frontier of each search, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import print_json
from ensdistill.common.files import read_json

if TYPE_CHECKING:
    from ensdistill.job.config import Config


def show(config: Config, changed: bool) -> None:
    """Print the result of every search of a run.

    Parameters
    ----------
    config : Config
    changed : bool
        Whether some work was done.
    """
    from rich.console import Console

    from ensdistill.job.run_folder import RunFolder
    from ensdistill.job.unit import Unit
    from ensdistill.report.frontier import lines

    run = RunFolder(config)
    units = [Unit("search", seed, name) for name in config.searched for seed in range(config.seeds)]
    found: list[tuple[Unit, Any]] = [(unit, read_json(run.of(unit) / "result.json")) for unit in units]
    if manner().json:
        about = {"command": "tune", "run": str(config.run_folder), "changed": changed}
        searches = [{"student": unit.student, "seed": unit.seed, **result} for unit, result in found]
        print_json(about | {"searches": searches})
        return
    console = Console(highlight=False, markup=False)
    for unit, result in found:
        console.print(f"{unit.student}, seed {unit.seed}", style="bold")
        console.print("\n".join(lines(result)), soft_wrap=True)
        if not manner().quiet:
            console.print(f"\nsettings: {run.of(unit) / 'student.yaml'}", soft_wrap=True)
