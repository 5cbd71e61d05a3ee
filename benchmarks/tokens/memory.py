"""A process that trains a student in one way, and prints how much memory its steps took.

python -m benchmarks.tokens.memory FOLDER "online teachers" STEPS
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tokens.models import MEMBERS
from benchmarks.tokens.training import CACHED, Cached, Online, batches
from ensdistill.cache import TargetCache
from ensdistill.data.tokens import TokenSequences

ROOT = Path(__file__).resolve().parent.parent.parent


def save(folder: Path, models: list[Any], sequences: TokenSequences) -> None:
    """Write models and sequences into the folder of the cache, for the process that is measured."""
    for k, model in enumerate(models):
        model.save_pretrained(folder / f"teacher-{k}")
    np.savez(folder / "sequences.npz", ids=sequences.ids, vocabulary=sequences.vocabulary)


def measured(folder: Path, way: str, steps: int) -> dict[str, Any]:
    """Of another process: its largest resident memory in MB, and by how much its steps raised it."""
    words = [sys.executable, "-m", "benchmarks.tokens.memory", str(folder), way, str(steps)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: the process that measures its memory failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(folder: Path, way: str, steps: int) -> None:
    from transformers import GPT2LMHeadModel

    with np.load(folder / "sequences.npz") as stored:
        sequences = TokenSequences([{"input_ids": one} for one in stored["ids"]], int(stored["vocabulary"]))
    trained: Cached | Online
    if way == CACHED:
        trained = Cached(TargetCache.open(folder / "cache"), sequences)
    else:
        models = [GPT2LMHeadModel.from_pretrained(folder / f"teacher-{k}").eval() for k in range(MEMBERS)]
        trained = Online(models, sequences)
    before = _peak()
    for rows in batches(sequences, steps):
        trained.step(rows)
    print(json.dumps({"way": way, "mb_peak": _peak(), "mb_of_steps": _peak() - before}))


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage of Linux begins with the memory of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) / 2**10
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
