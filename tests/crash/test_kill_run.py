"""Ctrl-C and kill -9 at random moments of the whole job: the same command ends with an undisturbed run's
numbers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_helpers import numbers, succeed, trained, write_job

ROUNDS = int(os.environ.get("ENSDISTILL_KILL_ROUNDS", "1"))
# Of a finished job, about: the moment is drawn in files that are there, not in seconds, which depend on the machine.
FILES = 45
PATIENCE = 10.0  # seconds that a worker may need to notice, on a busy machine
# The command as a user gives it but for the measuring of latencies, which takes most of so small a job's
# time.
COMMAND = """
import sys
import ensdistill.job.evaluate as evaluate
from ensdistill.cli.main import main
evaluate.LATENCY_SECONDS = 0.0
sys.exit(main())
"""


def start(file: Path) -> subprocess.Popen[bytes]:
    """The job in a process group of its own, which listens to SIGINT even where the tests run in a shell's
    background."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def count(folder: Path) -> int:
    # Unlike rglob, walk doesn't mind a folder that is taken away while it looks.
    return sum(len(files) for _, _, files in os.walk(folder))


def wait_for_files(folder: Path, least: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while count(folder) < least and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def session(leader: int) -> list[int]:
    """The living processes of a session, from /proc."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state != "Z":
            alive.append(int(stat.parent.name))
    return alive


def nobody_is_left(leader: int) -> None:
    until = time.monotonic() + PATIENCE
    while (left := session(leader)) and time.monotonic() < until:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)  # a red test leaves no process behind either
    assert not left, f"still there {PATIENCE} s after their parent"


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc, which only Linux has"
)


def the_same_command(file: Path, finished_job: Path) -> None:
    succeed("run", file)
    folder = file.parent / "runs" / "tiny"
    assert trained(folder) == trained(finished_job)
    assert numbers(folder) == numbers(finished_job)
    leftovers = [path for path in folder.rglob("*.part") if "training" not in path.parts]
    assert len(leftovers) <= 2  # of one writer that was killed while it wrote: never read


@pytest.mark.slow
def test_ctrl_c(tmp_path, finished_job):
    # A terminal sends SIGINT to the whole group.
    file = write_job(tmp_path)
    process = start(file)
    wait_for_files(tmp_path / "runs", 20, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"Stopped. Everything finished is kept; the same command goes on from there." in err
    assert b"Traceback" not in err
    nobody_is_left(process.pid)
    the_same_command(file, finished_job)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_long_work_ends_with_its_parent(tmp_path, sent):
    # Sent to the parent alone, as by a process manager. The worker would go on with its unit for an hour.
    process = start(write_job(tmp_path, {"teachers.members.0.init_args.optimization.steps": 5_000_000}))
    wait_for_files(tmp_path / "runs", 2, process)  # the lock, and the first checkpoint
    os.kill(process.pid, sent)
    nobody_is_left(process.pid)
    _, err = process.communicate()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL), err.decode()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_kill_9(tmp_path, finished_job, round_):
    file, moment = write_job(tmp_path), random.Random(round_).randrange(1, FILES)
    process = start(file)
    wait_for_files(tmp_path / "runs", moment, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it had ended before its {moment}th file"
    nobody_is_left(process.pid)
    the_same_command(file, finished_job)
