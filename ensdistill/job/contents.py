"""The contents of a run folder, from its files alone: nothing is loaded, so a glance is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensdistill.common.errors import WrongArgument
from ensdistill.common.files import read_json
from ensdistill.job.exports import SUFFIXES, exported_files
from ensdistill.job.settings_file import read_settings, sources_of

STAGES = ("teachers", "cache", "direct", "distill")


@dataclass(frozen=True)
class Contents:
    """The contents of a run folder.

    Parameters
    ----------
    folder : Path
    settings : dict
        Of ``run.yaml``; empty for a run of an older version.
    sources : list of str
        The files that the settings came from.
    seeds : int
        Of the settings, or of the folders where there are none.
    finished : dict of str to int
        How many seeds of a stage (``distill mlp``) are finished; 0 where a stage is missing.
    report : dict or None
        The content of report.json.
    rows : list of dict, or None
        Digests of the rows of each seed's parts, where the report has recorded them.
    exports : list of Path
        Files of students for other programs.
    stale : list of Path
        Those of a student that was trained anew since.
    """

    folder: Path
    settings: dict[str, Any]
    sources: list[str]
    seeds: int
    finished: dict[str, int]
    report: dict[str, Any] | None
    rows: list[dict[str, str]] | None
    exports: list[Path] = field(default_factory=list)
    stale: list[Path] = field(default_factory=list)

    @property
    def students(self) -> list[str]:
        """Those of the settings, of the report, or of the folders."""
        return [stage.partition(" ")[2] for stage in self.finished if stage.startswith("distill ")]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in ("run.yaml", "report.json")) or any(
        path.is_dir() for stage in STAGES for path in folder.glob(f"seed-*/{stage}")
    )


def contents(folder: Path) -> Contents:
    """The contents of a run's folder.

    Raises
    ------
    ValueError
        It is not the folder of a run.
    """
    if not folder.is_dir():
        raise WrongArgument(
            f"RUN: there is no folder {str(folder)!r}; expected that of a run, such as runs/NAME"
        )
    if not is_run(folder):
        runs = sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
        data = f"; if it holds data: ensdistill init {folder}"
        near = f": name one of its runs, {', '.join(map(str, runs[:5]))}" if runs else data
        raise WrongArgument(f"RUN: {str(folder)!r} is not the folder of a run, such as runs/NAME{near}")
    settings = read_settings(folder)
    there = len([path for path in folder.glob("seed-*") if path.is_dir()])
    seeds = int(settings.get("seeds", there))
    report, record = report_of(folder), read_json(folder / "stage.json")
    students = (
        list(settings.get("distill", {}).get("students", {}))
        or list((report or {}).get("students", {}))
        or sorted({path.name for path in folder.glob("seed-*/distill/*") if path.is_dir()})
    )
    stages = [
        "teachers",
        "cache",
        *(f"{stage} {name}" for name in students for stage in ("direct", "distill")),
    ]
    finished = {
        stage: sum(_is_whole(folder / f"seed-{seed}" / stage.replace(" ", "/")) for seed in range(seeds))
        for stage in stages
    }
    exported = exported_files(folder)
    # Not below seed-*, where members may be ONNX files too.
    files = [path for path in [*folder.glob("*"), *folder.glob("export*/**/*")] if path.suffix in SUFFIXES]
    return Contents(
        folder,
        settings,
        sources_of(folder),
        seeds,
        finished,
        report,
        record.get("rows") if isinstance(record, dict) else None,
        sorted({*files, *exported}),
        sorted(path for path, stale in exported.items() if stale),
    )


def report_of(folder: Path) -> dict[str, Any] | None:
    """A run's report; None where there is none, or where a stage was made anew since. The report's record is
    removed when work begins."""
    report = read_json(folder / "report.json")
    return report if isinstance(report, dict) and (folder / "stage.json").is_file() else None


def _is_whole(folder: Path) -> bool:
    """Whether a stage is finished, and its files have the sizes that they had."""
    record = read_json(folder / "stage.json")
    return isinstance(record, dict) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in record.get("files", {}).items()
    )
