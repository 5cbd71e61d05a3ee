"""The floor of a shape, measured: the time of a plain loop over the same buffers (``floor.cpp``), with the same threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensdistill.targets import QuantizedLogits, Targets

SOURCE = Path(__file__).with_name("floor.cpp")
_WORD = 4


@lru_cache(maxsize=1)
def _loop() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floor.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(
                f"no C++ compiler {command[0]!r} for the floor's loop; install one (Debian/Ubuntu: apt-get install g++) or set CXX"
            ) from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{' '.join(command)} failed:\n{error.stderr}") from None
        loop = ctypes.CDLL(str(library)).floor_loop
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loop.argtypes = [pointer, pointer, count, count, pointer, count, count]
    loop.restype = ctypes.c_int32
    return loop


def floor(student: Tensor, targets: Targets, out: Tensor | None, pool: ThreadPoolExecutor) -> Callable[[], None]:
    """A call that reads ``student`` [N, C] and all members, and writes ``out`` [N, C], or nothing where it is None.

    The threads are the ``pool``'s, each with one contiguous share, so that nothing waits for another between start and end.
    """
    values = targets.codes if isinstance(targets, QuantizedLogits) else targets.logits
    members, words, member_words = values.shape[0], _words(student), _words(values[0])
    if member_words > words:
        raise ValueError(f"targets: expected elements no larger than the student's; got {values.dtype} and {student.dtype}")
    inputs = (ctypes.c_void_p * members)(*[member.data_ptr() for member in values])
    loop, to = _loop(), None if out is None else out.data_ptr()
    threads = torch.get_num_threads()
    # Members of codes are shorter than the student: both the part with them and the part without are shared out.
    shares = [
        (low * i // threads + start, low * (i + 1) // threads + start)
        for start, low in ((0, member_words), (member_words, words - member_words))
        for i in range(threads)
    ]
    held = (student, values, out)  # the loop has only addresses

    def run() -> None:
        jobs = [
            pool.submit(_share, loop, held[0].data_ptr(), inputs, members, member_words, to, shares[i::threads]) for i in range(threads)
        ]
        for job in jobs:
            job.result()

    return run


def _share(loop: Any, student: int, inputs: Any, members: int, member_words: int, to: int | None, shares: list[tuple[int, int]]) -> None:
    for begin, end in shares:
        if begin < end:
            loop(student, inputs, members, member_words, to, begin, end)


def _words(x: Tensor) -> int:
    if not x.is_contiguous() or x.nbytes % _WORD:
        raise ValueError(f"expected a contiguous tensor of whole 4-byte words; got shape {list(x.shape)}, strides {x.stride()}, {x.dtype}")
    return x.nbytes // _WORD
