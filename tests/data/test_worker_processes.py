"""Lazy samples are read by worker processes of every start method."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from ensdistill.common.ahead import _live_with

SCRIPT = """
import multiprocessing

import numpy as np
from ensdistill.data.samples import Lazy, positions, stream


class Rows:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return np.full(3, index) + (multiprocessing.parent_process() is not None) / 2


if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    samples = Lazy(Rows())
    found = np.concatenate(list(stream(samples, positions(40, 8), workers=2)))
    assert found.tolist() == [[i + 0.5] * 3 for i in range(40)], found
    print("read by", multiprocessing.get_start_method())
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_of_every_start_method_read_the_same(method, tmp_path):
    file = tmp_path / "reads.py"
    file.write_text(SCRIPT.replace("{method}", method))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"read by {method}\n"


def test_a_worker_of_the_fork_server_knows_that_its_starter_lives():
    context = multiprocessing.get_context("forkserver")
    for parent, status in ((None, 0), (os.getpid(), 1)):  # the system calls the server its parent
        process = context.Process(target=_live_with, args=(parent, 0))
        process.start()
        process.join(60)
        assert process.exitcode == status
