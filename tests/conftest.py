import os

# Several workers test side by side: each with a team of threads would be more threads than cores, which wait
# for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from ensdistill.loss import ops

if TYPE_CHECKING:
    import cuda_shim_helpers

    from ensdistill.data import Split


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Tests have no doctests: without this, each worker would look for them in every object of every file here."""
    return [collector for collector in (yield) if type(collector) is pytest.Module]


@pytest.fixture(params=ops.build_info()["cpu"]["runnable"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU instruction set that runs here; the one in use before is back afterwards."""
    before = ops.instruction_set()
    ops.use_instruction_set(request.param)
    yield request.param
    ops.use_instruction_set(before)


@pytest.fixture
def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Imports a source text as a user's module; the same name again is the file edited and imported by a new
    process."""

    def load(source: str, name: str = "users_own") -> ModuleType:
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        specification = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, name, module)
        exec(
            compile(source, str(file), "exec"), vars(module)
        )  # not through the bytecode, which goes by the clock
        return module

    return load


@pytest.fixture(autouse=True)
def no_state_of_accelerate() -> Iterator[None]:
    """A trainer of Hugging Face leaves settings of its process behind, which the next accelerator has to share."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch uses one thread, as a process of a job does: small trainings have the same bits, and are faster."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> "Split":
    """scikit-learn's digits, dealt to the ends of the small jobs; to be read only."""
    from ensdistill.data import Digits

    return Digits().split(seed=0)


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the smallest whole job, made by one undisturbed worker; to be read only. ``job.yaml``
    is two folders up."""
    from filelock import FileLock
    from job_helpers import succeed, write_job

    # The run folder is finished when its lock is free: pytest's workers share one.
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished_job"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            succeed("run", write_job(folder), processes=True)
    return folder / "runs" / "tiny"


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Figures of a report are made and not drawn, which takes most of a small report's time."""
    from report_cases import without_drawing

    with without_drawing():
        yield


@pytest.fixture
def copy(finished_job: Path, tmp_path: Path) -> Path:
    """A copy of the finished job that a test may change: its run folder; job.yaml is two folders up."""
    from job_helpers import write_job

    write_job(tmp_path)
    shutil.copytree(finished_job, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


@pytest.fixture(scope="session")
def shim_builder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "cuda_shim_helpers.Builder":
    """Compiles the CUDA kernels for the CPU; the builds are kept in pytest's cache."""
    from cuda_shim_helpers import Builder

    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    return Builder(cache.mkdir("cuda_shim") if cache else tmp_path_factory.mktemp("cuda_shim"))


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line of a test's counts, for the end of the output; a print gets lost in the workers."""
    return lambda line: record_property("figures", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "figures" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(sorted(lines)))
