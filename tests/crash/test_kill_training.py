"""An ensemble trained by several processes, of which one dies."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ensdistill.cache import cache_targets
from ensdistill.data import Digits, Rows
from ensdistill.teachers import Ensemble

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from ensemble_trainer import train  # noqa: E402


@pytest.fixture(scope="module")
def alone():
    """With as many threads as the processes have: a sum over several is another one in its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(None)
    torch.set_num_threads(before)


def torchrun(count: int, *arguments: object, restarts: int = 0) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        f"--max-restarts={restarts}",
    ]
    run = subprocess.run(
        [*command, str(HERE / "ensemble_trainer.py"), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


def check(folder: Path, count: int, alone: Ensemble) -> None:
    expected = alone.predict_proba(Digits().split(seed=0).test.inputs)
    test = Digits().split(seed=0).test.inputs
    rows = Rows(test, np.arange(len(test)), np.zeros(len(test), np.int64))
    cached = cache_targets(alone, rows, folder / "cache of one", shard_rows=100).gather_records(rows.uids)
    for rank in range(count):
        np.testing.assert_array_equal(np.load(folder / f"answers-{rank}.npy"), expected)
        np.testing.assert_array_equal(np.load(folder / f"cached-{rank}.npy"), cached)
    one, several = (
        {f.name: f.read_bytes() for f in (folder / name).iterdir() if not f.name.endswith(".lock")}
        for name in ("cache of one", "cache")
    )
    assert several == one
    assert Ensemble.load(folder).fingerprint() == alone.fingerprint()
    assert not (folder / "training").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_trains_the_same_ensemble(tmp_path, alone, count):
    torchrun(count, tmp_path / "e", tmp_path / "log")
    check(tmp_path / "e", count, alone)
    begun = (tmp_path / "log").read_text().split()
    assert sorted(begun) == sorted(alone.names)  # each once, by one of them


@pytest.mark.slow
def test_a_dead_process_s_work_is_done_again_and_nothing_else(tmp_path, alone):
    # Of two processes the first has members 1 and 4, and a tree, fitted in the end. It dies in the middle of
    # member 4.
    torchrun(2, tmp_path / "e", tmp_path / "log", 4, restarts=1)
    assert (tmp_path / "log.died").exists()
    check(tmp_path / "e", 2, alone)
    begun = Counter((tmp_path / "log").read_text().split())
    assert set(begun) == set(alone.names)
    assert begun["mlp-1"] == 1  # the same process's, and finished
    assert (
        begun["mlp-4"] == 2
    )  # the interrupted member begins anew: the first checkpoint is written after 256 steps
    # The other process is killed along; at most the one member that it was at begins anew as well.
    assert sum(begun.values()) <= len(begun) + 2
