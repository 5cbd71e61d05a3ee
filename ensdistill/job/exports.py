"""The figures of a run's exported students, which lie beside the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensdistill.common.files import read_json

FOLDER = "export"
SUFFIXES = (".onnx", ".pt2")


def figures_file(path: Path) -> Path:
    """The file of figures of an exported file, or folder."""
    return path / "export.json" if path.is_dir() else path.with_name(f"{path.name}.json")


def fingerprint_of(student: Path) -> str:
    """The digest of a saved student's content."""
    about = read_json(student / "member.json") or {}
    return str(about.get("fingerprint"))


def exported_files(run: Path) -> dict[Path, bool]:
    """The exported files and folders in a run's folder, and whether each is stale: of a student that has been
    trained anew, or removed, since."""
    found = {}
    for file in sorted([*run.glob("*.json"), *(run / FOLDER).rglob("*.json")]):
        about = read_json(file)
        if not isinstance(about, dict) or "variants" not in about or "fingerprint" not in about:
            continue
        folder = file.parent.parent if file.name == "export.json" else file.parent
        stale = about["fingerprint"] != fingerprint_of(_student(run, about))
        names = [name for name in about["files"] if Path(name).suffix in SUFFIXES or (folder / name).is_dir()]
        found.update({folder / name: stale for name in names if (folder / name).exists()})
    return found


def _student(run: Path, about: dict[str, Any]) -> Path:
    return run / f"seed-{about['seed']}" / "distill" / about["student"] / "student"


def exports_of(run: Path) -> list[dict[str, Any]]:
    """The exported files below ``export`` in a run's folder, of students as they are now: name, student,
    seed, runtime, and bytes, accuracy, NLL and latencies on the test rows.

    Files that were exported before a student was trained anew are left out.
    """
    found = []
    for file in sorted((run / FOLDER).rglob("*.json")):
        about = read_json(file)
        if not isinstance(about, dict) or "variants" not in about or not about.get("student"):
            continue
        if about.get("fingerprint") != fingerprint_of(_student(run, about)):
            continue
        shared = {name: about[name] for name in ("student", "seed", "runtime", "temperature")}
        found += [{**shared, **variant} for variant in about["variants"][1:]]
    return found
