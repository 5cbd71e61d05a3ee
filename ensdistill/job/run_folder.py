"""Folders of a run: the one record that says what a folder was made from, and that it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ensdistill.common.files import read_json, write_arrays, write_json
from ensdistill.data import Split
from ensdistill.teachers.members import TorchMember

Progress = Callable[[str, int, int], None]
"""(what, done, total): rate and time left are the display's business."""


def is_done(folder: Path, digest_of_inputs: str) -> bool:
    record = read_json(folder / "stage.json")
    if not isinstance(record, dict) or record.get("fingerprint") != digest_of_inputs:
        return False
    sizes: dict[str, int] = record["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def finish(folder: Path, digest_of_inputs: str, seconds: float, only: str = "**/*", **more: Any) -> None:
    """Record that the folder's files were made from these inputs. The last thing a stage writes."""
    names = sorted(p for p in folder.glob(only) if p.is_file() and p.name not in ("stage.json", ".lock") and not p.name.endswith(".part"))
    files = {str(p.relative_to(folder)): p.stat().st_size for p in names}
    write_json(folder / "stage.json", {"fingerprint": digest_of_inputs, "seconds": round(seconds, 3), "files": files, **more})


def keep(factory: Callable[[], nn.Module], folder: Path, split: Split, train: Callable[..., Any], inputs: str) -> None:
    """Train one model (``train(checkpoint=file)``) and keep it, unless it is kept already."""
    if is_done(folder, inputs):
        return
    start = time.perf_counter()
    trained = train(checkpoint=folder / "checkpoint.safetensors")
    TorchMember(trained.module, name="student", classes=split.classes, factory=factory, output="logits").save(folder)
    write_arrays(folder / "curve.safetensors", {"steps": trained.steps, "losses": trained.losses, "watched": trained.watched})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    finish(folder, inputs, time.perf_counter() - start)
