"""A training on two machines: each fetches its own shards of a cache at a URL, and all return one student."""

import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from machine_trainer import ROWS, SIZE, N, train  # noqa: E402

from ensdistill import Ensemble, cache_targets  # noqa: E402
from ensdistill.models import MLP  # noqa: E402
from ensdistill.student import trainer  # noqa: E402

SHARD = 500
CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # as in test_kill_torchrun


@contextmanager
def served(folder: Path):
    """A server of a folder at /0/ and /1/, and the bytes of shards that it sent from each of the two."""
    sent: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return super().translate_path("/" + path.split("/", 2)[2])

        def copyfile(self, source, outputfile):
            if self.path.endswith(".safetensors"):
                sent[self.path.split("/")[1]] += os.fstat(source.fileno()).st_size
            super().copyfile(source, outputfile)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def launched(
    processes: tuple[int, ...], url: str, folder: Path, *, fail: int = 0
) -> list[subprocess.CompletedProcess]:
    """Start ``torchrun`` once for each machine, with so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for machine, count in enumerate(processes):
        options = [f"--nnodes={len(processes)}", f"--node-rank={machine}", f"--nproc-per-node={count}"]
        options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        arguments = [f"{url}/{machine}/cache", str(folder / f"machine-{machine}"), str(folder), str(fail)]
        script = [sys.executable, "-m", "torch.distributed.run", *options, str(HERE / "machine_trainer.py")]
        running.append(
            subprocess.Popen(
                [*script, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    ended = []
    for process in running:
        output, _ = process.communicate(timeout=600)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, output))
    return ended


def loaded(folder: Path, rank: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"student-{rank}.npz") as content:
        return dict(content)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.manual_seed(0)
    members = [MLP(8, [5], 5).requires_grad_(False) for _ in range(2)]
    folder = tmp_path_factory.mktemp("served") / "cache"
    return cache_targets(Ensemble.from_members(members), ROWS, folder, shard_rows=SHARD)


@pytest.mark.slow
def test_two_machines_fetch_their_shards_and_return_one_student(cache, tmp_path, monkeypatch):
    machines = (0, 1, 1)
    sizes = [shard["bytes"] for shard in cache.manifest["shards"]]
    two = tmp_path / "two"
    two.mkdir()
    with served(cache.path.parent) as (url, sent):
        failed = launched((1, 2), url, two, fail=100)
        assert all(process.returncode for process in failed)
        assert "InterruptedError" in "".join(process.stdout for process in failed)
        assert (two / "checkpoint").exists()
        shutil.copytree(two, tmp_path / "other")
        for process in launched((1, 2), url, two):
            assert process.returncode == 0, process.stdout
        # A third of the rows, in the first 4 of 12 shards, and two thirds; nothing is fetched twice.
        assert sent == {"0": sum(sizes[:4]), "1": sum(sizes[4:])}
        print(sent, sum(sizes))

        (refused,) = launched((3,), url, tmp_path / "other")
        assert "CheckpointMismatch" in refused.stdout
        assert "rows of a batch by machine: the checkpoint has [8, 16], now nothing" in refused.stdout

    students = [loaded(two, rank) for rank in range(3)]
    for rank, machine in enumerate(machines):
        uids = np.concatenate([np.load(file) for file in sorted((two / f"notes-{rank}").glob("*"))])
        assert len(uids) == N // 3
        assert set(uids // (N // 3)) == ({0} if machine == 0 else {1, 2})
        for name, value in students[rank].items():
            np.testing.assert_array_equal(value, students[0][name], err_msg=name)
    every = [np.load(file) for file in two.glob("notes-*/*")]
    assert len(np.unique(np.concatenate(every))) == N  # an epoch
    assert {len(uids) for uids in every} == {SIZE // 3}

    # One process that takes the same batches whole, and never fails.
    monkeypatch.setattr(trainer, "machines_of", lambda group: machines)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = train(cache, tmp_path).module.state_dict()
    torch.set_num_threads(before)
    for name, value in one.items():
        np.testing.assert_allclose(students[0][name], value.numpy(), err_msg=name, **CLOSE)
