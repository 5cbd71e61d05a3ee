"""The teams of threads in a job's worker."""

import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ensdistill.job import scheduler


def teams() -> list[int]:
    import sklearn.ensemble  # noqa: F401
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"]


def test_every_team_of_a_worker_has_the_threads_of_the_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    context = mp.get_context("spawn")
    reload = partial(SimpleNamespace, run_folder=Path(tmp_path))
    start = (reload, 1, context.SimpleQueue())
    with ProcessPoolExecutor(1, context, initializer=scheduler._start_worker, initargs=start) as pool:
        found = pool.submit(teams).result()
    assert found
    assert set(found) == {1}
