"""kill -9 of helpers and of the whole job while it searches for a student: the search goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from job_helpers import write_job

from ensdistill.student.search.journal import JOURNAL
from tests.job.test_task_searches import write_job as write_task_job

pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds helpers in /proc"),
]
ROUNDS = int(os.environ.get("ENSDISTILL_KILL_ROUNDS", "2"))
ENOUGH, SPENT = 60.0, 0.01  # minutes: a slow machine's search would end by itself amid the kills
COMMAND = """
import sys
from ensdistill.cli.main import main
sys.exit(main())
"""


def start(file: Path, minutes: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "tune", str(file), "--minutes", str(minutes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def trials(journal: Path) -> int:
    return journal.read_bytes().count(b'"record"') if journal.exists() else 0


def wait_for_trials(journal: Path, least: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 300
    while trials(journal) < least and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)


def workers(journal: Path) -> set[str]:
    """The processes that have begun a trial."""
    if not journal.exists():
        return set()
    whole, _, _ = journal.read_text().rpartition("\n")  # a line may be half written
    lines = [json.loads(line) for line in whole.splitlines()]
    return {one["user_attr"]["worker"] for one in lines if "worker" in one.get("user_attr", {})}


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(one) for one in found]


def test_two_workers_share_a_search_that_survives_kills(tmp_path):
    change = {
        "workers": 2,
        "data.init_args.pool": 850,
        "distill.students": {"small": {"keep": 0.8, "families": ["mlp"]}},
    }
    file = write_job(tmp_path, change)
    folder = tmp_path / "runs" / "tiny" / "seed-0" / "search" / "small"
    journal, generator = folder / "journal" / JOURNAL, random.Random(0)
    process, done = start(file, ENOUGH), 0
    for _ in range(ROUNDS):
        wait_for_trials(journal, done + generator.randint(1, 4), process)
        assert process.poll() is None, process.communicate()
        done = trials(journal)
        kill(process)
        assert trials(journal) >= done
        process = start(file, ENOUGH)
    before, until = workers(journal), time.monotonic() + 300
    while process.poll() is None and len(workers(journal) - before) < 2:
        assert time.monotonic() < until, "the helper did not come"
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.kill(children(process)[-1], signal.SIGKILL)  # the helper, which was started last
    wait_for_trials(journal, trials(journal) + 2, process)  # at most one of them was the helper's
    assert process.poll() is None, process.communicate()
    kill(process)
    # With less time than was spent the search ends.
    process = start(file, SPENT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    assert b"direct, mlp/" in out
    result = json.loads((folder / "result.json").read_text())
    assert sum(result["cost"]["trials"].values()) >= done
    assert not (folder / "journal").exists()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_search_for_labels_and_for_numbers_survives_a_kill(tmp_path, task):
    file = write_task_job(tmp_path, task)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"trials": None}))
    folder = tmp_path / "runs" / "tiny" / "seed-0" / "search" / "found"
    journal = folder / "journal" / JOURNAL
    process = start(file, ENOUGH)
    wait_for_trials(journal, 3, process)
    assert process.poll() is None, process.communicate()
    done = trials(journal)
    kill(process)
    process = start(file, SPENT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    result = json.loads((folder / "result.json").read_text())
    assert sum(result["cost"]["trials"].values()) >= done
    assert not (folder / "journal").exists()
