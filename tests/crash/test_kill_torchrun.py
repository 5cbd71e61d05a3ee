"""A student trained by several processes: the one of a single process, whichever of them die on the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from student_trainer import DEATHS, GO_ON, JOBS, arrays, cache, run  # noqa: E402

from ensdistill import TargetCache  # noqa: E402

# Means of 12 rows, and their mean, against means of 24, in float32. The differences grow over 60 steps of
# AdamW.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
ROUGH = {"atol": 2e-2, "rtol": 2e-2}  # in bfloat16, of 8 bits


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes: a sum over several threads has other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchrun(count: int, folder: Path, *arguments: str, restarts: int = 0) -> None:
    options = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={restarts}"]
    launched(["torch.distributed.run", *options], folder, *arguments)


def launched(launcher: list[str], folder: Path, *arguments: str) -> None:
    folder.mkdir(exist_ok=True)
    cache(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)}
    run = subprocess.run(
        [sys.executable, "-m", *launcher, str(HERE / "student_trainer.py"), str(folder), *arguments],
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


ALONE = [job for job in JOBS if job != "norms of shares" and not job.startswith("to be killed")]


@pytest.mark.parametrize("job", ALONE)
def test_it_is_the_student_of_one_process(compared, job):
    several, one = loaded(compared / f"{job}-0.npz"), arrays(JOBS[job](compared))
    assert several.keys() == one.keys()
    close = ROUGH if "compiled" in job else CLOSE
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, **close, err_msg=name)
    assert (compared / f"{job}-0.txt").read_text() == ""  # nothing to warn of


def test_the_best_weights_of_a_divided_student_are_those_that_it_returns(compared):
    kept = load_file(compared / "divided, in a folder" / "best.safetensors")
    student = loaded(compared / "divided, in a folder-0.npz")
    assert len(kept) == 10
    for name, value in kept.items():
        np.testing.assert_array_equal(value.numpy(), student[name], err_msg=name)


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


@pytest.mark.parametrize("job", GO_ON)
def test_one_process_goes_on_with_the_checkpoint_of_two(compared, job, tmp_path):
    for file in compared.glob(f"{job}.checkpoint*"):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    os.symlink(compared / "cache", tmp_path / "cache")
    for shards in tmp_path.glob("*.shards-000000032/*"):  # nothing else, which would be unpickled
        assert len(load_file(shards)) >= 10, shards
    with pytest.warns(
        UserWarning,
        match=r"^checkpoint: .* is of a training by 2 processes.*, continued by 1 process: sums round "
        r"differently .* start 2 processes",
    ) as warned:
        changed = arrays(run(job, tmp_path))
    assert len(warned) == 1
    one = arrays(JOBS[job](compared))
    for name, value in one.items():
        np.testing.assert_allclose(changed[name], value, **CLOSE, err_msg=name)


def check_deaths(compared: Path, folder: Path, count: int, *deaths: str) -> None:
    torchrun(count, folder, "die", *deaths, restarts=len(deaths))
    for start in range(len(deaths) + 1):
        assert (folder / f"start-{start}-0").exists()
    assert not (folder / f"start-{len(deaths) + 1}-0").exists()
    for job in {death.split(":")[0] for death in deaths}:
        for rank in range(count):
            student, undisturbed = (
                loaded(file) for file in (folder / f"{job}-{rank}.npz", compared / f"{job}-0.npz")
            )
            assert student.keys() == undisturbed.keys()
            for name, value in undisturbed.items():
                np.testing.assert_array_equal(student[name], value, err_msg=name)


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_bits(compared, tmp_path):
    check_deaths(compared, tmp_path / "two", 2, "to be killed:rename")


WHOLE, DIVIDED, FILLED = "to be killed", "to be killed, divided", "a cache as you go"
OF_FILLS = ("before a fill", "in a fill", "after a fill")
OF_DIVIDED = ("first", "begin", "one shard", "half", "all shards", "read", "old shards", "end of the divided")
OF_WHOLE = [
    death for death in DEATHS if death not in OF_FILLS and "shard" not in death and "divided" not in death
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "deaths",
    [[f"{WHOLE}:{death}" for death in OF_WHOLE], [f"{DIVIDED}:{death}" for death in OF_DIVIDED]],
    ids=["whole", "divided"],
)
def test_killed_at_many_moments(compared, tmp_path, deaths):
    check_deaths(compared, tmp_path / "two", 2, *deaths)


@pytest.mark.slow
def test_processes_of_accelerate_train_the_same_student(compared, tmp_path):
    # --multi_gpu is its only way to several processes on one machine, GPU or not; the port is free.
    options = "--multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no"
    launcher = ["accelerate.commands.launch", *options.split(), "--main_process_port=0"]
    launched(launcher, tmp_path / "launched", "train", "few labels", "divided")
    for job in ("few labels", "divided"):
        for rank in range(2):
            student, other = (
                loaded(folder / f"{job}-{rank}.npz") for folder in (tmp_path / "launched", compared)
            )
            for name, value in other.items():
                np.testing.assert_array_equal(student[name], value, err_msg=f"{job}: {name}")


@pytest.mark.slow
def test_killed_while_they_fill_a_cache(compared, tmp_path):
    check_deaths(compared, tmp_path / "two", 2, *[f"{FILLED}:{death}" for death in OF_FILLS])
    filled = [folder / "filled by 2" for folder in (compared, tmp_path / "two")]
    undisturbed, killed = (
        {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in filled
    )
    assert killed == undisturbed != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "deaths"),
    [(WHOLE, ("second", "all", "half")), (DIVIDED, ("first", "all shards", "half"))],
    ids=["whole", "divided"],
)
def test_three_processes_are_killed(tmp_path, job, deaths):
    # Their sums depend on the order, which has to be the same after a resume.
    torchrun(3, tmp_path / "undisturbed", "train", job)
    os.link(tmp_path / "undisturbed" / f"{job}-0.npz", tmp_path / f"{job}-0.npz")
    check_deaths(tmp_path, tmp_path / "three", 3, *[f"{job}:{death}" for death in deaths])


@pytest.mark.slow
def test_four_processes_train_the_student_of_one_and_go_on_with_that_of_others(compared, tmp_path):
    four = tmp_path / "four"
    torchrun(4, four, "train", *ALONE)
    for job in ALONE:
        several, one = loaded(four / f"{job}-3.npz"), arrays(JOBS[job](compared))
        close = ROUGH if "compiled" in job else CLOSE
        for name, value in one.items():
            np.testing.assert_allclose(several[name], value, **close, err_msg=f"{job}: {name}")

    # The last checkpoints, of step 32, of 4 to 2, 2 to 4, and 1 to 2.
    alone = tmp_path / "alone"
    alone.mkdir()
    for job in GO_ON:
        run(job, alone)
    for before, count in ((four, 2), (compared, 4), (alone, 2)):
        folder = tmp_path / f"{before.name} goes on"
        shutil.copytree(before, folder, ignore=shutil.ignore_patterns("*.npz"))
        torchrun(count, folder, "train", *GO_ON)
        for job in GO_ON:
            assert (
                ": sums round differently and dropout masks differ" in (folder / f"{job}-0.txt").read_text()
            )
            assert (folder / f"{job}-1.txt").read_text() == ""
            several, one = loaded(folder / f"{job}-1.npz"), arrays(JOBS[job](compared))
            for name, value in one.items():
                np.testing.assert_allclose(several[name], value, **CLOSE, err_msg=f"{job}: {name}")
