"""A writer that dies at any moment: nothing half written is ever read, and the next run ends with the same bytes.

ENSDISTILL_KILL_ROUNDS=100 python -m pytest tests/crash/test_kill_cache.py is the long form: 200 kills at random for each job.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_writer import JOBS, contents, write

from ensdistill.cache import CacheIncomplete, TargetCache

SCRIPT = Path(__file__).with_name("cache_writer.py")
ROUNDS = int(os.environ.get("ENSDISTILL_KILL_ROUNDS", "2"))
# One thread: a process that has started others does not fork safely.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def steps(folder, job):
    done = subprocess.run([sys.executable, str(SCRIPT), "steps", str(folder), job], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_death_before_every_single_change_of_the_file_system(tmp_path):
    result = steps(tmp_path, "write")
    # 5 shards and 5 commits, plan and manifest: each opened and renamed; then the tidying up.
    assert result["steps"] > 2 * 12
    assert 1 < result["finished"] < result["steps"] // 2


@pytest.mark.parametrize("job", ["convert", "add-member"])
def test_death_while_a_cache_is_derived(tmp_path, job):
    assert steps(tmp_path, job)["steps"] > 2 * 12


def test_death_while_another_cache_is_overwritten(tmp_path):
    assert steps(tmp_path, "overwrite")["steps"] > 2 * 12


def start(job, folder, *more):
    writer = subprocess.Popen(
        [sys.executable, str(SCRIPT), job, str(folder), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert writer.stdout.readline() == b"ready\n"
    return writer


@pytest.mark.parametrize("job", JOBS if ROUNDS > 2 else ["write"])
def test_kill_9_at_random_moments(tmp_path, job):
    generator, killed, accepted = random.Random(6), 0, 0
    # The moments lie within what an undisturbed writer takes here to its manifest, however fast the machine is.
    writer, begun = start(job, tmp_path / "undisturbed" / "cache"), time.perf_counter()
    while not (tmp_path / "undisturbed" / "cache" / "manifest.json").exists():
        assert writer.poll() is None
        time.sleep(0.001)
    whole = time.perf_counter() - begun
    writer.communicate()
    undisturbed = contents(tmp_path / "undisturbed" / "cache")
    for round_ in range(ROUNDS):
        folder = tmp_path / str(round_) / "cache"
        for _ in range(2):
            writer = start(job, folder)
            time.sleep(generator.uniform(0.0, 0.8 * whole))
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
            killed += writer.returncode == -signal.SIGKILL
            if folder.exists():
                try:
                    TargetCache.open(folder, check="full")
                except CacheIncomplete:
                    pass
                else:
                    accepted += 1
                    assert {name: data for name, data in contents(folder).items() if name in undisturbed} == undisturbed
        JOBS[job](folder)
        assert contents(folder) == undisturbed
    print(f"{job}: {killed} kills; {accepted} times the cache was finished, else refused; every one resumed to the same bytes")
    assert killed >= ROUNDS  # most of them died on the way, not after the end


def test_several_writers_and_the_death_of_one(tmp_path):
    write(tmp_path / "one")
    folder = tmp_path / "several"
    writers = [start("write", folder, str(rank), "3") for rank in range(3)]
    time.sleep(0.01)
    writers[1].send_signal(signal.SIGKILL)
    writers[1].communicate()
    writers[1] = start("write", folder, "1", "3")
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    assert contents(folder) == contents(tmp_path / "one")


def test_ctrl_c_leaves_no_part_behind_and_what_can_be_resumed(tmp_path):
    write(tmp_path / "whole")
    folder = tmp_path / "stopped"
    writer = start("write", folder)
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
