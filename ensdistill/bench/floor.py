"""The floor of a shape, measured: a plain loop over the same buffers (``floor.cpp``), with the same threads.
For the CPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensdistill.bench.cases import Case
from ensdistill.bench.inputs import Inputs
from ensdistill.loss.targets import QuantizedLogits, TopK

SOURCE = Path(__file__).with_name("floor.cpp")
_WORD = 4


def why_not() -> str | None:
    """Why the loop can't run here; None where it can."""
    try:
        _loop()
    except (OSError, RuntimeError) as failure:
        return f"the streaming floor: left out, {failure}"
    return None


def make_floor(
    case: Case, inputs: Inputs, gradient: bool, pool: ThreadPoolExecutor
) -> Callable[[], Any] | None:
    """The least that ``case`` can cost: its memory traffic, or for a last layer its three matrix products
    (the forward's one).

    None where the loop can't run, and for small batches: handing them to threads from Python takes longer
    than they do. The gradient's buffer is touched here: an output whose pages come from the system on first
    use would not be a floor.
    """
    if case.hidden:
        return products(inputs, gradient)
    if case.small or why_not():
        return None
    student = inputs.leaves[0].detach()
    run = stream(student, members(inputs), torch.zeros_like(student) if gradient else None, pool)
    run()
    return run


def products(inputs: Inputs, gradient: bool) -> Callable[[], list[Tensor]]:
    """Matrix products of a last layer into buffers that are there: logits, and the gradients of hidden and
    weight."""
    hidden, weight = (x.detach() for x in inputs.leaves)
    logits = hidden @ weight.t()
    outputs = [torch.zeros_like(hidden), torch.zeros_like(weight)] if gradient else []

    def run() -> list[Tensor]:
        torch.mm(hidden, weight.t(), out=logits)
        if gradient:
            torch.mm(logits, weight, out=outputs[0])
            torch.mm(logits.t(), hidden, out=outputs[1])
        return [logits, *outputs]

    return run


def members(inputs: Inputs) -> list[Tensor]:
    """The tensors that a loss has to read beside the student, except one number a row (labels, a code's
    scale, a tail's mass)."""
    targets = inputs.targets
    if isinstance(targets, TopK):
        return [targets.ids, targets.log_probs]
    return list(targets.codes if isinstance(targets, QuantizedLogits) else targets.logits)  # type: ignore[union-attr]


def stream(
    student: Tensor, members: list[Tensor], out: Tensor | None, pool: ThreadPoolExecutor
) -> Callable[[], None]:
    """A call that reads ``student`` and all ``members`` (of one size), and writes ``out``, or nothing where
    it is None.

    The threads are the ``pool``'s, each with one contiguous share, so that nothing waits for another between
    start and end.
    """
    words, member_words = _words(student), _words(members[0])
    if member_words > words:
        raise ValueError(
            f"members: expected no more bytes than the student's; got {members[0].nbytes} and "
            f"{student.nbytes}"
        )
    inputs = (ctypes.c_void_p * len(members))(*[member.data_ptr() for member in members])
    loop, to = _loop(), None if out is None else out.data_ptr()
    threads = torch.get_num_threads()
    # Members of codes are shorter than the student: both the part with them and the part without are shared
    # out.
    shares = [
        (low * i // threads + start, low * (i + 1) // threads + start)
        for start, low in ((0, member_words), (member_words, words - member_words))
        for i in range(threads)
    ]
    held = (student, members, out)  # the loop has only addresses

    def run() -> None:
        own = [shares[i::threads] for i in range(threads)]
        jobs = [
            pool.submit(_share, loop, held[0].data_ptr(), inputs, len(members), member_words, to, part)
            for part in own
        ]
        for job in jobs:
            job.result()

    return run


def _share(
    loop: Any,
    student: int,
    inputs: Any,
    members: int,
    member_words: int,
    to: int | None,
    shares: list[tuple[int, int]],
) -> None:
    for begin, end in shares:
        if begin < end:
            loop(student, inputs, members, member_words, to, begin, end)


def _words(x: Tensor) -> int:
    if not x.is_contiguous() or x.nbytes % _WORD:
        raise ValueError(
            f"expected a contiguous tensor of whole 4-byte words; got shape {list(x.shape)}, strides "
            f"{x.stride()}, {x.dtype}"
        )
    return x.nbytes // _WORD


@lru_cache(maxsize=1)
def _loop() -> Any:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("it needs a C++ compiler (Debian/Ubuntu: apt-get install g++; or set CXX)")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floor.so"
        command = [
            compiler,
            "-std=c++17",
            "-O3",
            "-march=native",
            "-shared",
            "-fPIC",
            str(SOURCE),
            "-o",
            str(library),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        loop = ctypes.CDLL(str(library)).floor_loop
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loop.argtypes = [pointer, pointer, count, count, pointer, count, count]
    loop.restype = ctypes.c_int32
    return loop
