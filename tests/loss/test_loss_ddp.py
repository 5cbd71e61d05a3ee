"""The loss through DistributedDataParallel: two processes with half of the rows each take the step of one
with all of them."""

import torch
from closed_forms import make_codes, make_logits
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from ensdistill.loss.modules import DistillationLoss

PROCESSES, ROWS = 2, 8


def batch(rows):
    inputs, codes, labels = make_logits(ROWS, 6, seed=0), make_codes(3, ROWS, 10, seed=1), torch.arange(ROWS)
    return inputs[rows], codes.rows(rows.start, rows.stop), labels[rows]


def gradients(rows, wrap=lambda model: model, recompute=False):
    """Of two steps' losses, added up: the second meets gradients that are there already."""
    torch.manual_seed(0)
    model = wrap(torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10)))
    loss = DistillationLoss(temperature=2.0, alpha=0.7, weights=[0.2, 0.3, 0.5], recompute=recompute)
    inputs, targets, labels = batch(rows)
    for _ in range(2):
        loss(model(inputs), targets, labels).backward()
    return [p.grad for p in model.parameters()]


def work(rank, store, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    share = ROWS // PROCESSES
    rows = slice(rank * share, (rank + 1) * share)
    torch.save(
        [gradients(rows, DistributedDataParallel, recompute) for recompute in (False, True)],
        f"{results}/{rank}.pt",
    )
    distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    multiprocessing.spawn(work, (tmp_path / "store", tmp_path), nprocs=PROCESSES)
    expected = gradients(slice(0, ROWS))
    for rank in range(PROCESSES):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)  # float32, the mean of two means
    half = gradients(slice(0, ROWS // PROCESSES))
    assert any(
        (x - y).abs().max() > 1e-3 for x, y in zip(half, expected, strict=True)
    )  # which one half alone doesn't have
