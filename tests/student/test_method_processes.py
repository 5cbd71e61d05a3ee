"""Two processes train by methods that have modules of their own: the student is that of one process."""

from __future__ import annotations

import warnings
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer
from ensdistill.models import MLP
from ensdistill.student import OnlineTeachers
from ensdistill.student.methods import distribution
from ensdistill.student.methods.distribution import Guard

PROCESSES = 2
STUDENT = partial(MLP, inputs=6, hidden=[8], outputs=3)
X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
# The processes' shares of a batch have unlike numbers of labels.
ROWS = Rows(X, np.arange(60), np.where(np.arange(60) % 5 == 0, np.arange(60) % 3, -100))
METHODS = {
    "mutual": {"mutual": {"of": {"kd": {"alpha": 0.5}}, "peers": 2}},
    "learned": {"weighted": {"by": "learned"}},
    "endd": "endd",
    "endd, collapsing": "endd",
    "hints": {"kd": 1, "hints": {"student_layer": "1", "teacher_layer": "1"}},
    "hydra": "hydra",
}


def teachers(alike: bool) -> OnlineTeachers:
    torch.manual_seed(0)
    members = [MLP(6, [8], 3).requires_grad_(False) for _ in range(2)]
    if alike:  # then the precision that the likelihood prefers has no bound
        members[1].load_state_dict(members[0].state_dict())
    return OnlineTeachers(Ensemble.from_members(members))


def students() -> dict[str, tuple[list[torch.Tensor], tuple[str, ...]]]:
    """By method the parameters and the notes at the end."""
    found = {}
    for name, method in METHODS.items():
        collapsing = name == "endd, collapsing"
        settings = Optimization(steps=64, batch_size=20, learning_rate=0.05 if collapsing else 0.01)
        with mock.patch.object(distribution, "WARM_UP", 8 if collapsing else 100):
            trained = StudentTrainer(settings, method=method).distill(
                STUDENT, ROWS, teachers(collapsing), seed=1
            )
        found[name] = list(trained.module.state_dict().values()), trained.notes
    return found


def work(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        found = students()
    texts = [str(one.message) for one in raised if "collapsed" in str(one.message)]
    torch.save((found, texts), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_students_of_one(tmp_path, one_thread):
    multiprocessing.spawn(work, (tmp_path / "store", tmp_path), nprocs=PROCESSES)
    with pytest.warns(UserWarning, match="endd collapsed at step"):
        expected = students()
    assert expected["endd, collapsing"][1][0].startswith("endd collapsed at step")
    assert not any("collapsed" in note for note in expected["endd"][1])
    for rank in range(PROCESSES):
        found, warned = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert len(warned) == (rank == 0)  # once, and not by each process
        for name, (parameters, notes) in found.items():
            assert notes == expected[name][1]
            for one, other in zip(parameters, expected[name][0], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_a_collapse_in_another_process_s_share_is_one_here_too():
    log_mean, fine = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log(), torch.zeros(2)
    for there, reason in (
        ([0.0, 1.0, 0.0, 35.0], "a logit is 35"),
        ([0.0, 1.0, 1.0, 0.0], "its loss is not finite"),
    ):
        group = mock.Mock(rank=0, mean=lambda tensor: tensor)
        group.by_rank = lambda own, there=there: torch.stack([own, torch.tensor(there).to(own)])
        guard = Guard()
        with pytest.warns(UserWarning, match=reason):
            guard.watch(log_mean, fine, log_mean, 3, group)
        assert guard.collapsed
    quiet = Guard()
    group = mock.Mock(rank=1, mean=lambda tensor: tensor)
    group.by_rank = lambda own: torch.stack([own, torch.tensor([0.0, 1.0, 1.0, 0.0]).to(own)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # process 0 warns for all
        quiet.watch(log_mean, fine, log_mean, 3, group)
    assert quiet.collapsed
