"""Runs a job's units of work on several processes, with a live view; what is finished is skipped, what was
killed goes on."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ensdistill.common.errors import message
from ensdistill.common.files import exclusive, read_json
from ensdistill.common.fingerprint import digest
from ensdistill.job.config import Config
from ensdistill.job.helpers import Helpers, StartWorker
from ensdistill.job.run_folder import RunFolder, finish, is_done
from ensdistill.job.student_files import describe_students
from ensdistill.job.unit import Unit

_worker: dict[str, Any] = {}


class Display(Protocol):
    """Shows a job's progress."""

    def start(self, finished: int, todo: int) -> None:
        """``finished`` units are there already; ``todo`` follow."""

    def progress(self, piece: Any, what: str, done: int, total: int, figures: str = "") -> None:
        """``done`` of ``total`` steps of ``what`` in one unit, and its present figures, such as a loss."""

    def finished(self, piece: Any, seconds: float) -> None:
        """A unit is finished, in so many seconds of its own."""

    def warning(self, text: str) -> None:
        """A worker raised a warning with this text."""

    def preflight(self, found: Any) -> None:
        """All caches are finished; ``found`` is an
        :class:`ensdistill.student.preflight.Preflight`."""


class UnitFailed(RuntimeError):
    """A unit of work raised an error; the message is the error's, ``details`` the traceback in the process
    that did the work, and ``by_system`` says that it was an OSError: no fault of the code's."""

    def __init__(self, unit: Unit, message: str, details: str, by_system: bool) -> None:
        super().__init__(f"{unit}: {message}")
        self.details, self.by_system = details, by_system


def run(
    config: Config,
    last: str,
    reload: Callable[[], Config],
    display: Display,
    keep_settings: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any] | None:
    """Bring the run up to the stage ``last`` and return the report where that is the report.

    Parameters
    ----------
    config : Config
    last : {"teachers", "cache", "preflight", "distill", "report"}
    reload : callable
        Makes the same config again in another process; it has to be importable there.
    display : Display
    keep_settings : callable
        Writes the settings into the run's folder, once the job has been found to be sound.

    Raises
    ------
    FolderLocked
        Another process is writing the run folder.
    UnitFailed
        With the error of the unit that failed first; the others' finished work is kept.
    """
    folder = RunFolder(config)
    with exclusive(folder.path):
        todo, finished = [], 0
        for unit in folder.units(last):
            if folder.is_finished(unit):
                finished += 1
                describe_students(folder, unit, again=False)  # earlier versions wrote none
            else:
                todo.append(unit)
        display.start(finished, len(todo))
        if todo:
            # The trainers load for seconds; a finished run needs none.
            from ensdistill.job.check import check_job
            from ensdistill.report.html import check_packages

            check_job(folder)
            if last == "report":
                check_packages()
            folder.keep_plan()
        keep_settings(folder.path)
        if todo:
            # From here on the report is of other models than those in the folder.
            (folder.path / "stage.json").unlink(missing_ok=True)
            _execute(folder, todo, reload, display)
        return _report(folder, display) if last == "report" else None


def _execute(folder: RunFolder, todo: list[Unit], reload: Callable[[], Config], display: Display) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config = folder.config
    most = config.workers or max(1, cores // config.threads)
    workers = min(most, len(todo))
    context = mp.get_context("spawn")  # fork would copy torch's threads' locks
    _start_tracker()
    messages = context.SimpleQueue()
    # The workers are always separate processes, also a single one: the numbers then can't depend on how many
    # there are.
    start_worker = partial(_start_worker, reload, config.threads)
    helpers = Helpers(context, start_worker, most)
    with _pool(workers, context, start_worker, messages) as pool:
        waiting, running = list(todo), dict[Future[Any], Unit]()
        while waiting or running:
            ready = [
                unit
                for unit in waiting
                if not any(need in waiting or need in running.values() for need in folder.needs(unit))
            ]
            for unit in ready[: workers - len(running)]:
                waiting.remove(unit)
                running[pool.submit(_work, unit)] = unit
            helpers.help(list(running.values()), most - len(running), config)
            done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for show, *shown in (*_waiting(messages), *helpers.messages()):
                getattr(display, show)(*shown)
            for future in done:
                unit = running.pop(future)
                helpers.end(unit)
                error = future.result()
                if error is not None:
                    raise UnitFailed(unit, *error)
                display.finished(unit, folder.record(unit)["seconds"])
                left = [one.name for one in (*waiting, *running.values())]
                if unit.name == "cache" and "cache" not in left:
                    _forecast(folder, display)


def _waiting(messages: Any) -> Iterator[Any]:
    """The messages in the workers' queue."""
    while not messages.empty():
        yield messages.get()


def _forecast(folder: RunFolder, display: Display) -> None:
    """Show the preflight, while the students are being trained."""
    from ensdistill.job.preflight import run_preflight

    # Of members without held-out predictions there is none; `ensdistill preflight` names them.
    with suppress(ValueError):
        display.preflight(run_preflight(folder))


class _pool:
    """A process pool that takes its processes with it when it is left by an exception (Ctrl-C, a failed
    unit)."""

    def __init__(self, workers: int, context: Any, start_worker: StartWorker, messages: Any) -> None:
        self.executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=start_worker, initargs=(messages,)
        )

    def __enter__(self) -> ProcessPoolExecutor:
        return self.executor

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            for process in mp.active_children():
                process.kill()
        self.executor.shutdown(wait=kind is None, cancel_futures=True)


def _start_tracker() -> None:
    """Start multiprocessing's resource tracker, which outlives a killed run to clean up after it, without its
    warning of having done so."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _start_worker(reload: Callable[[], Config], threads: int, messages: Any) -> RunFolder:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    # A parent that was killed can't say goodbye: without this its workers would go on writing into a run that
    # is started anew.
    parent = mp.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if sys.platform == "linux":
        # Readers of lazy samples would be spawned too, which takes seconds for every short training.
        mp.set_start_method("fork", force=True)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    # scikit-learn's boosting has a team of its own, as large as the machine. Such teams of several workers
    # wait for each other: ten times as long.
    threadpool_limits(threads, user_api="openmp")
    # Of texts' bags of n-grams torch has no batching rule; a reader of the warning can do nothing about it.
    warnings.filterwarnings("ignore", ".*batching rule for aten::embedding_bag")
    # The parent draws on the terminal: a line of another process would stand amid its bars.
    warnings.showwarning = lambda text, *_, **__: messages.put(("warning", str(text)))
    _worker.update(folder=RunFolder(reload()), messages=messages)
    folder: RunFolder = _worker["folder"]
    return folder


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(unit: Unit) -> tuple[str, str, bool] | None:
    """What `UnitFailed` is made of, where it failed: exceptions with their own constructors don't survive the
    way home."""
    from ensdistill.job.stages import run_unit

    messages, shown = _worker["messages"], 0.0

    def progress(what: str, done: int, total: int, figures: object = "") -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > 0.1 or done == total:
            messages.put(("progress", unit, what, done, total, str(figures)))
            shown = now

    try:
        run_unit(_worker["folder"], unit, progress)
    except Exception as error:
        return (message(error), traceback.format_exc(), isinstance(error, OSError))
    return None


def _report(run: RunFolder, display: Display) -> dict[str, Any]:
    folder, inputs = run.path, run.report_digest()
    if is_done(folder, inputs):
        report: dict[str, Any] = read_json(folder / "report.json")
        return report
    import torch

    from ensdistill.job.evaluate import evaluate
    from ensdistill.report import write_report

    torch.set_num_threads(run.config.threads)
    start = time.perf_counter()
    results = evaluate(run, lambda what, done, total, _="": display.progress("report", what, done, total))
    report = write_report(results, folder)
    seconds = time.perf_counter() - start
    finish(folder, inputs, seconds, only="report.*", rows=_rows_of(run.config))
    display.finished("report", seconds)
    return report


def _rows_of(config: Config) -> list[dict[str, str]]:
    """Digests of the rows of each seed's parts, by which two reports are known to be about the same rows."""
    splits = [config.split(seed) for seed in range(config.seeds)]
    return [
        {
            part: digest([rows.uids, rows.labels, list(split.classes)])
            for part, rows in (("labelled", split.labelled), ("pool", split.pool), ("test", split.test))
        }
        for split in splits
    ]
