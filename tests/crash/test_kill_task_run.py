"""kill -9 at a random moment of a job on several labels, or on numbers: the same command ends with an
undisturbed run's numbers."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from job_helpers import numbers, succeed, trained

from tests.crash.test_kill_run import nobody_is_left, start, wait_for_files
from tests.job.test_task_jobs import settings, write_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc"),
]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_killed_run_of_another_task_ends_with_the_same_numbers(tmp_path, task):
    files, folders = [], []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        write_table(folder)
        files.append(settings(folder, task))
        folders.append(folder / "runs" / "tiny")
    succeed("run", files[0])
    process = start(files[1])
    wait_for_files(folders[1], random.Random(task).randrange(5, 25), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended before"
    nobody_is_left(process.pid)
    succeed("run", files[1])
    assert trained(folders[1]) == trained(folders[0])
    assert numbers(folders[1]) == numbers(folders[0])
