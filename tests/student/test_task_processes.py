"""Two processes train the students of one: of several labels and of numbers, with some rows unlabelled."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, multiprocessing

from ensdistill import StudentTrainer
from tests.student.task_sources import (
    FULLY,
    MEASURED,
    OF_LABELS,
    OF_MOMENTS,
    OF_NUMBERS,
    PARTLY,
    SHORT,
    TAGGED,
    labels_source,
    numbers_source,
)

PROCESSES = 2
KINDS = {
    "multilabel": (OF_LABELS, TAGGED, FULLY),
    "regression": (OF_NUMBERS, PARTLY, MEASURED),
    "with variances": (OF_MOMENTS, PARTLY, MEASURED),
}


def students():
    """Of each kind a student and *direct*: the parameters, and the scores at the end."""
    found = {}
    for kind, (factory, rows, labelled) in KINDS.items():
        source = labels_source() if kind == "multilabel" else numbers_source(variances=True)
        trainer = StudentTrainer(SHORT, alpha=0.3)
        for name, trained in (
            (kind, trainer.distill(factory, rows, source, seed=1, validation=0.2)),
            (f"{kind}, direct", trainer.direct(factory, labelled, seed=1, validation=0.2)),
        ):
            found[name] = list(trained.module.state_dict().values()), vars(trained.evaluations[-1].student)
    return found


def work(rank, store, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    torch.save(students(), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_students_of_one(tmp_path):
    multiprocessing.spawn(work, (tmp_path / "store", tmp_path), nprocs=PROCESSES)
    expected = students()
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found.keys() == expected.keys()
        for name, (parameters, scores) in found.items():
            for one, other in zip(parameters, expected[name][0], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
            for metric, value in expected[name][1].items():
                assert scores[metric] == (value if value is None else pytest.approx(value, rel=1e-4)), metric
