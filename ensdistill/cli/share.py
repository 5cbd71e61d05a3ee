"""``ensdistill share FILE``: one student for the data sets of several jobs, a head for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, print_json, usage_error

if TYPE_CHECKING:
    from ensdistill.job.config import Config
    from ensdistill.job.shared import SharedConfig

EXAMPLE = """\
example:
  sets:
    kinds: {config: kinds.yaml}
    sizes: {config: sizes.yaml, weight: 2}
  trunk: {class_path: MLP, init_args: {hidden: [64], outputs: 32}}
  features: 32
  optimization: {steps: 2000, batch_size: 64, learning_rate: 0.01}
"""


def parser() -> Parser:
    """The options."""
    p = Parser(
        prog="ensdistill share",
        description="Distils the ensembles of several jobs into one trunk with a head for each data set. "
        "FILE names the jobs' settings. It trains each job's teachers, fills its cache, trains the same "
        "network on that set alone with its baselines, and then the shared student from all caches. Each "
        "head has a report of its own. What is finished is skipped.",
        epilog=EXAMPLE,
    )
    p.add_argument("file", type=Path, metavar="FILE", help="a YAML file: sets, trunk, features, optimization")
    return p


def load(file: Path, folder: str | None = None) -> tuple[SharedConfig, dict[str, Config]]:
    """The settings in a file, and the job of each set. A job's path is relative to the file's folder.

    Raises
    ------
    ValueError
        Wrong settings; those of a job begin with ``sets.<name>``.
    """
    from ensdistill.cli.settings import load_config, parsed
    from ensdistill.job.shared import SharedConfig

    shared = parsed(SharedConfig, file, name=file.stem)
    jobs = {}
    for name, own in shared.sets.items():
        place = own.config if own.config.is_absolute() else file.parent / own.config
        if not place.is_file():
            raise ValueError(f"sets.{name}.config: expected a job's settings; there is no file {place}")
        try:
            jobs[name] = shared.job(name, load_config(["--config", str(place)], folder))
        except ValueError as error:
            raise ValueError(f"sets.{name}: {error}") from error
    return shared, jobs


def job_of(file: str, name: str, folder: str) -> Config:
    """The job of one set, made again in another process."""
    return load(Path(file), folder)[1][name]


def main(words: Sequence[str]) -> int:
    """Train and judge the shared student; return the exit status."""
    options = parser().parse(words)
    if not options.file.is_file():
        return usage_error(f"FILE: there is no file {str(options.file)!r}", "`ensdistill share --help`")
    from ensdistill.job.shared import SHARED, check_sets, results_of, train_shared

    try:
        shared, jobs = load(options.file)
        check_sets(shared, jobs)
    except (ValueError, TypeError) as error:
        return usage_error(str(error), "`ensdistill share --help` shows an example.")
    from rich.console import Console

    from ensdistill.cli.display import Display
    from ensdistill.job.scheduler import run
    from ensdistill.report import write_report
    from ensdistill.report.table import as_text

    console = Console(highlight=False, soft_wrap=True, quiet=manner().json)
    for name, config in jobs.items():
        with Display() as display:
            run(config, "distill", partial(job_of, str(options.file), name, os.getcwd()), display)
    for seed in range(shared.seeds):
        train_shared(shared, jobs, seed)
    reports: dict[str, Any] = {}
    for name, config in jobs.items():
        folder = shared.run_folder / SHARED / name
        reports[name] = write_report(results_of(shared, name, config), folder)
        console.print(as_text(reports[name]))
        if not manner().quiet:
            console.print(f"\nreport of {name}: {folder / 'report.html'}\n")
    if manner().json:
        print_json({"run": str(shared.run_folder), "reports": reports})
    return 0
