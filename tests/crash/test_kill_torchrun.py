"""A student trained by several processes: the one of a single process, whichever of them die on the way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from student_trainer import DEATHS, JOBS, arrays, cache  # noqa: E402

from ensdistill import TargetCache  # noqa: E402

# Means of 12 rows, and their mean, against means of 24, in float32. The differences grow over 60 steps of
# AdamW.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes: a sum over several threads has other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchrun(count: int, folder: Path, *arguments: str, restarts: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    cache(folder)
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
        [*command, str(HERE / "student_trainer.py"), str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr


def loaded(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    torchrun(2, folder, "compare")
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_all_processes_return_the_same_student(compared, job):
    first, second = (loaded(compared / f"{job}-{rank}.npz") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("norms of shares", "to be killed")])
def test_it_is_the_student_of_one_process(compared, job):
    several, one = loaded(compared / f"{job}-0.npz"), arrays(JOBS[job](compared))
    assert several.keys() == one.keys()
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, **CLOSE, err_msg=name)
    assert (compared / f"{job}-0.txt").read_text() == ""  # nothing to warn of


def test_two_processes_fill_one_cache(compared):
    JOBS["a cache as you go"](compared)
    two, one = (TargetCache.open(compared / f"filled by {count}", check="full") for count in (2, 1))
    assert two.manifest["fingerprint"] == one.manifest["fingerprint"]
    for view in range(4):
        logits = [cache.gather_logits(cache.uids, view) for cache in (two, one)]
        # Logits of a batch of half the rows, rounded, and then stored in steps of a 255th of their range.
        np.testing.assert_allclose(logits[0], logits[1], atol=np.ptp(logits[1]) / 200)


def test_batch_norm_of_shares_is_another_student_and_one_warning(compared):
    name = "hidden.0.weight"
    several, one = (
        loaded(compared / "norms of shares-0.npz")[name],
        arrays(JOBS["norms of shares"](compared))[name],
    )
    assert np.abs(several - one).max() > 100 * CLOSE["atol"]
    said = (compared / "norms of shares-0.txt").read_text()
    assert said.startswith(
        "BatchNorm (image.1 and 1 more): each of the 2 processes takes mean and variance of its own 12 rows "
        "of a batch"
    )
    assert (compared / "norms of shares-1.txt").read_text() == ""


def check_deaths(compared: Path, folder: Path, count: int, deaths: list[str]) -> None:
    torchrun(count, folder, "die", *deaths, restarts=len(deaths))
    for start in range(len(deaths) + 1):
        assert (folder / f"start-{start}-0").exists()
    assert not (folder / f"start-{len(deaths) + 1}-0").exists()
    for rank in range(count):
        student, undisturbed = (
            loaded(file) for file in (folder / f"student-{rank}.npz", compared / "to be killed-0.npz")
        )
        for name, value in undisturbed.items():
            np.testing.assert_array_equal(student[name], value, err_msg=name)


def test_killed_processes_go_on_to_the_same_bits(compared, tmp_path):
    check_deaths(compared, tmp_path / "two", 2, ["rename"])
    # Its last checkpoint is of two processes, whose sums one process can't go on with.
    with pytest.raises(
        ValueError,
        match=r"^checkpoint: .* is of a training by 2 processes, now there are 1, .* start as many again",
    ):
        JOBS["to be killed"](tmp_path / "two", checkpoint=tmp_path / "two" / "checkpoint.safetensors")


@pytest.mark.slow
def test_killed_at_ten_moments(compared, tmp_path):
    check_deaths(compared, tmp_path / "two", 2, list(DEATHS))


@pytest.mark.slow
def test_three_processes_are_killed(tmp_path):
    # Their sums depend on the order, which has to be the same after a resume.
    torchrun(3, tmp_path / "undisturbed", "die")
    os.link(tmp_path / "undisturbed" / "student-0.npz", tmp_path / "to be killed-0.npz")
    check_deaths(tmp_path, tmp_path / "three", 3, ["second", "all", "half"])
