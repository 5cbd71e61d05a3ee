"""A run folder's units: done once, kept, made again where a file is lost, written by one process."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
from job_helpers import fingerprints, job_file, run, stamps, succeed, trained, write_job

from ensdistill.cli.settings import load_config
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit


def test_the_units_and_their_needs(finished_job):
    config = load_config(["--config", str(job_file(finished_job)), "--seeds", "2"])
    run = RunFolder(config)
    every = run.units("report")
    assert len(every) == len(set(every)) == 2 * (1 + 1 + 2 + 2)
    assert run.units("teachers") == [Unit("teachers", 0), Unit("teachers", 1)]
    assert {unit.stage for unit in run.units("cache")} == {"teachers", "cache"}
    assert run.units("distill") == every
    assert all(need in every for unit in every for need in unit.needs())
    assert Unit("distill", 1, "wide").needs() == [Unit("cache", 1)]
    assert not Unit("direct", 0, "small").needs()  # a baseline sees no teacher


@pytest.mark.parametrize(
    ("words", "says"), [(["run"], "figures/ beside it (unchanged)"), (["cache", "build"], "= cache build: ")]
)
def test_a_command_without_work_prints_unchanged(copy, words, says):
    out = succeed(*words, job_file(copy)).replace("\n", "")
    assert says in out
    assert out.rstrip().endswith("(unchanged)")
    assert "✓" not in out


def test_a_second_run_touches_nothing(copy):
    succeed("run", job_file(copy))  # run.yaml names the folder, and the copy has another one
    before = stamps(copy)
    out = succeed("run", job_file(copy))
    assert stamps(copy) == before
    assert "Retained gain" in out  # and still shows the results
    for command in ("teachers", "distill", "report"):
        succeed(command, job_file(copy))
    succeed("cache", "build", job_file(copy))
    assert stamps(copy) == before


def test_a_lost_file_is_made_again(copy, finished_job):
    (copy / "seed-0" / "distill" / "small" / "student" / "model.safetensors").unlink()
    (copy / "seed-0" / "cache" / "transfer.safetensors").write_bytes(b"cut")
    before = stamps(copy / "seed-0" / "teachers")
    succeed("run", job_file(copy))
    assert trained(copy) == trained(finished_job)
    assert stamps(copy / "seed-0" / "teachers") == before


LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', "
    "flush=True); sys.stdin.read()"
)


def test_a_folder_that_another_process_writes(copy):
    before = stamps(copy)
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(copy / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        status, out, err = run("run", job_file(copy), "--distill.loss.temperature", "3")
        other.stdin.close()
    assert (status, out) == (1, "")
    assert f"{copy} is being written by another process; wait for it to end" in err
    assert stamps(copy) == before
    succeed("run", job_file(copy))


@pytest.mark.parametrize("write", [1, 12, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 20))])
def test_a_full_disk_then_the_same_command(copy, finished_job, monkeypatch, write):
    shutil.rmtree(copy)
    left, fsync = write, os.fsync

    def full(descriptor):
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run("distill", job_file(copy))
    monkeypatch.setattr(os, "fsync", fsync)
    assert status == 1
    assert "no space left on the disk of" in err
    assert "free some space and run the same command again" in err.replace("\n", " ")
    assert "--debug" not in err
    assert not list(copy.rglob("*.part"))
    succeed("distill", job_file(copy))
    assert trained(copy) == trained(finished_job)


def squared(batch):
    return batch**2


def doubled(batch):
    return batch * 2


def test_a_students_function_is_trusted_and_a_changed_one_makes_its_stages_stale(copy, monkeypatch):
    file = write_job(copy.parents[1], {"distill.students.small.preprocess": f"{__name__}.squared"})
    succeed("run", file)
    before = fingerprints(copy)
    monkeypatch.setattr(sys.modules[__name__], "squared", doubled)  # an edit of the file
    succeed("run", file)
    changed = [unit for unit, one in fingerprints(copy).items() if one != before[unit]]
    assert sorted(changed) == ["seed-0/direct/small", "seed-0/distill/small"]
