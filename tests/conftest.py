from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ensdistill import ops

if TYPE_CHECKING:
    import cuda_shim_helpers


@pytest.fixture(params=ops.build_info()["cpu"]["runnable"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU instruction set that runs here; the one in use before is back afterwards."""
    before = ops.instruction_set()
    ops.use_instruction_set(request.param)
    yield request.param
    ops.use_instruction_set(before)


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the smallest whole job, made by one undisturbed worker; to be read only. ``job.yaml`` is two folders up."""
    from job_helpers import succeed, write_job

    folder = tmp_path_factory.mktemp("job")
    succeed("run", write_job(folder), processes=True)
    return folder / "runs" / "tiny"


@pytest.fixture(scope="session")
def shim_builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "cuda_shim_helpers.Builder":
    """Compiles the CUDA kernels for the CPU; what it has built is kept in pytest's cache."""
    from cuda_shim_helpers import Builder

    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    return Builder(cache.mkdir("cuda_shim") if cache else tmp_path_factory.mktemp("cuda_shim"))
