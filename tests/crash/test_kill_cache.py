"""A process that writes a cache, derives one or trains from it may die at any moment: nothing half written is
ever read, and the next run ends with the same bytes.

``ENSDISTILL_KILL_ROUNDS=30 python -m pytest tests/crash/test_kill_cache.py`` is the long form: of each job 60
tries at random or more, of which 50 have to be kills. The counts stand at the end of the output.
"""

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_writer import JOBS, STUDENT, contents, is_accepted, slowly, write

from ensdistill.cache import CacheIncomplete, TargetCache

SCRIPT = Path(__file__).with_name("cache_writer.py")
ROUNDS = int(os.environ.get("ENSDISTILL_KILL_ROUNDS", "2"))
# One thread: a process that has started others does not fork safely.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def steps(folder, job):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "steps", str(folder), job],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_death_before_every_single_change_of_the_file_system(tmp_path):
    result = steps(tmp_path, "write")
    # 3 shards and 3 commits, plan and manifest: each opened and renamed; then the tidying up.
    assert result["steps"] > 2 * 8
    assert 1 < result["finished"] < result["steps"] // 2


@pytest.mark.slow
def test_death_while_uids_are_kept(tmp_path):
    assert steps(tmp_path, "uids")["steps"] > 2 * 9


@pytest.mark.slow
@pytest.mark.parametrize("job", ["labels", "moments"])
def test_death_while_a_cache_of_another_task_is_written(tmp_path, job):
    assert steps(tmp_path, job)["steps"] > 2 * 8


@pytest.mark.parametrize("job", ["convert", "add-member"])
def test_death_while_a_cache_is_derived(tmp_path, job):
    assert steps(tmp_path, job)["steps"] > 2 * 8


def test_death_while_a_student_learns_from_a_cache(tmp_path):
    assert steps(tmp_path, "train")["steps"] > 2 * 64 // 32  # each checkpoint opened and renamed


@pytest.mark.slow
def test_death_while_a_student_fills_a_cache(tmp_path):
    assert steps(tmp_path, "as-you-go")["steps"] > 2 * (8 + 3)


def test_death_while_another_cache_is_overwritten(tmp_path):
    assert steps(tmp_path, "overwrite")["steps"] > 2 * 8


def start(folder, *more):
    writer = subprocess.Popen(
        [sys.executable, str(SCRIPT), "write", str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        # Where the tests run in a shell's background, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert writer.stdout.readline() == b"ready\n"
    return writer


@pytest.fixture
def processes(monkeypatch):
    """Starts processes in which everything is imported already: hundreds of them die in a few minutes."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cache_writer", "ensdistill.student.trainer"])
    return context.Process


# The death of a training before each of its changes is tested above.
@pytest.mark.parametrize(
    "job", JOBS if ROUNDS > 2 else ["write", pytest.param("train", marks=pytest.mark.slow)]
)
def test_kill_9_at_random_moments(tmp_path, processes, figures, job):
    generator, killed, accepted = random.Random(6), 0, 0

    def start_in(folder):
        process = processes(target=slowly if job == "write" else JOBS[job], args=(folder,))
        process.start()
        return process

    # The moments lie within the time that an undisturbed process takes here to its last file, however fast the
    # machine is. It is the shortest of several: other work on the machine makes it longer, and the first one
    # starts the server of processes too.
    whole = math.inf
    for name in ("first", "second", "undisturbed"):
        folder = tmp_path / name / "cache"
        write(folder.with_name("source"))
        begun = time.perf_counter()
        process = start_in(folder)
        while not (folder / (STUDENT if job in ("train", "as-you-go") else "manifest.json")).exists():
            assert process.exitcode in (None, 0)
            time.sleep(0.001)
        whole = min(whole, time.perf_counter() - begun)
        process.join()
    undisturbed = contents(folder)
    wanted, rounds = 50 if ROUNDS >= 30 else ROUNDS, 0
    while rounds < ROUNDS or (
        killed < wanted and rounds < 2 * ROUNDS
    ):  # more of them where many ended before their kill
        round_, rounds = rounds, rounds + 1
        folder = tmp_path / str(round_) / "cache"
        write(folder.with_name("source"))
        for _ in range(2):
            process = start_in(folder)
            time.sleep(generator.uniform(0.0, 0.8 * whole))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            accepted += is_accepted(folder, undisturbed)
        process = processes(
            target=JOBS[job], args=(folder,)
        )  # with as many threads as the others: sums depend on that
        process.start()
        process.join()
        assert process.exitcode == 0
        assert contents(folder) == undisturbed
    figures(
        f"{job}: {killed} kills in {rounds} rounds, {2 * rounds - killed} ended before theirs; found "
        "finished, and equal to an undisturbed "
        f"run's, {accepted} times; {rounds} of {rounds} went on to the same bytes"
    )
    assert killed >= wanted  # most of them died on the way, not after the end


def test_several_writers_and_the_death_of_one(tmp_path):
    write(tmp_path / "one")
    folder = tmp_path / "several"
    writers = [start(folder, str(rank), "3") for rank in range(3)]
    time.sleep(0.01)
    writers[1].send_signal(signal.SIGKILL)
    writers[1].communicate()
    writers[1] = start(folder, "1", "3")
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    assert contents(folder) == contents(tmp_path / "one")


def test_ctrl_c_leaves_no_part_behind_and_a_cache_that_can_be_resumed(tmp_path):
    write(tmp_path / "whole")
    folder = tmp_path / "stopped"
    writer = start(folder)
    while not (folder / "shard-00000.commit.json").exists():
        assert writer.poll() is None
        time.sleep(0.001)
    writer.send_signal(signal.SIGINT)
    _, errors = writer.communicate()
    assert writer.returncode != 0
    assert "KeyboardInterrupt" in errors.decode()
    assert not list(folder.glob("*.part"))
    with pytest.raises(CacheIncomplete, match="has not finished"):
        TargetCache.open(folder)
    write(folder)
    assert contents(folder) == contents(tmp_path / "whole")
