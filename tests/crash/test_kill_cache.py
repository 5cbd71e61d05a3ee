"""A writer that dies at any moment: nothing half written is ever read, and the next run ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_writer import write

from ensdistill.cache import CacheIncomplete, TargetCache

SCRIPT = Path(__file__).with_name("cache_writer.py")
ROUNDS = int(os.environ.get("ENSDISTILL_KILL_ROUNDS", "6"))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write(str(folder))
    return contents(folder)


def all_or_nothing(folder, undisturbed):
    """A reader either refuses the folder as unfinished or gets the finished bytes."""
    try:
        TargetCache.open(folder, check="full")
    except CacheIncomplete:
        return False
    assert {name: data for name, data in contents(folder).items() if name in undisturbed} == undisturbed
    return True


def dies_at(step, folder, version=1):
    """Run the writer in a child that exits, with nothing tidied up, just before its n-th change of the file system."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event, arguments):
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir"):
                left -= 1
                if left == 0:
                    os._exit(9)

        try:
            sys.addaudithook(count)
            write(str(folder), version=version)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_death_before_every_single_change_of_the_file_system(tmp_path, undisturbed, monkeypatch):
    # What a process wrote outlives it without fsync, which is for the death of the machine; it only costs time here.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    finished, step, status = 0, 0, 9
    while status == 9:
        step += 1
        folder = tmp_path / str(step)
        status = dies_at(step, folder)
        if folder.exists():
            finished += all_or_nothing(folder, undisturbed)
        again = dies_at(step // 2 + 1, folder)  # resumed, and killed once more on the way
        assert again in (0, 9)
        write(str(folder))
        assert contents(folder) == undisturbed
    assert status == 0
    # 5 shards and 5 commits, plan and manifest: each opened and renamed; then the tidying up.
    assert step > 2 * 12
    assert 1 < finished < step // 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_death_while_another_cache_is_overwritten(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    write(str(tmp_path / "new"), version=2)
    old_or_new = (undisturbed, contents(tmp_path / "new"))
    for step in (1, 2, 3, 5, 7, 8, 9, 12, 20, 29, 31):
        folder = tmp_path / str(step)
        write(str(folder))
        assert dies_at(step, folder, version=2) == 9
        try:
            manifest = TargetCache.open(folder, check="full").manifest
        except CacheIncomplete:
            pass
        else:
            assert (folder / "manifest.json").read_bytes() in [files["manifest.json"] for files in old_or_new], manifest
        write(str(folder), version=2)
        assert contents(folder) == old_or_new[1]


def test_kill_9_at_random_moments(tmp_path, undisturbed):
    generator, killed = random.Random(6), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(folder):
        writer = subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, env=environment)
        assert writer.stdout.readline() == b"ready\n"
        return writer

    # The moments lie within what an undisturbed writer takes here, however fast the machine is.
    writer, begun = start(tmp_path / "undisturbed"), time.perf_counter()
    writer.communicate()
    whole = time.perf_counter() - begun
    for round_ in range(ROUNDS):
        folder = tmp_path / str(round_)
        for _ in range(2):
            writer = start(folder)
            time.sleep(generator.uniform(0.0, 0.6 * whole))
            writer.send_signal(signal.SIGKILL)
            killed += writer.wait() == -signal.SIGKILL
            writer.stdout.close()
            if folder.exists():
                all_or_nothing(folder, undisturbed)
        write(str(folder))
        assert contents(folder) == undisturbed
    assert killed >= ROUNDS  # most of them died on the way, not after the end
