"""Each contender in a process of its own, whose memory and that of its workers is watched."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS = {"quick": 96, "full": 640}
PNG_STEPS = 192  # a PNG costs a thousand times a table's row


def run(
    contender: str, part: str, kind: str, folder: Path, rows: int, workers: int, steps: int
) -> dict[str, Any]:
    """Samples a second, and the largest memory of the process and its workers together, in MiB.

    Memory is the proportional set size: pages that several processes share count once. Pages of mapped files
    are in it, though the system can take these back at any time; ``anonymous_mib`` is without them.
    """
    receiver, sender = multiprocessing.get_context("spawn").Pipe(False)
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(sender, contender, part, kind, folder, rows, workers, steps)
    )
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{contender} {part} from {kind} ended without a result") from None
    finally:
        process.join()
    return result


def _work(
    sender: Any, contender: str, part: str, kind: str, folder: Path, rows: int, workers: int, steps: int
) -> None:
    from benchmarks.data import contenders

    function = getattr(contenders, f"{contender}_{part}")
    watch = Watch()
    before = watch.now()
    with watch:
        arguments = (kind, folder, rows, workers, *([steps] if part == "student" else []))
        speed, outputs = function(*arguments)
    sender.send(
        {
            "samples_per_s": round(speed, 1),
            "peak_mib": round(watch.peak),
            "anonymous_mib": round(watch.anonymous),
            "before_mib": round(before[0]),
            "outputs": np.asarray(outputs, np.float64),
        }
    )
    sender.close()


class Watch:
    """The memory of this process and all below it, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak, self.anonymous = 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> tuple[float, float]:
        """All pages, and those of no file, in MiB."""
        import psutil

        own = psutil.Process()
        pages, anonymous = 0, 0
        for process in (own, *own.children(recursive=True)):
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:  # it has ended
                continue
            found = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
            pages += found["Pss"]
            anonymous += found["Pss_Anon"] + found.get("Pss_Shmem", 0)
        return pages / 1024, anonymous / 1024

    def _look(self) -> None:
        while not self._stop.is_set():
            pages, anonymous = self.now()
            self.peak, self.anonymous = max(self.peak, pages), max(self.anonymous, anonymous)
            time.sleep(0.1)
