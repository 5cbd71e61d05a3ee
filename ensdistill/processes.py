"""Work that several processes share: who this one is among those that ``torchrun`` started. Without them torch is not loaded."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_groups = itertools.count()  # made by this process, in the same order as by the others


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``count``; 0 of 1 where it is alone."""

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


@contextmanager
def processes(device: Any = "cpu") -> Iterator[Processes]:
    """The processes of torch's group; where ``torchrun`` says that there are several, a group is made (gloo, or nccl for a GPU) for the
    time being. A process whose work fails leaves without waiting for the others, so that ``torchrun`` can start them all again."""
    loaded = sys.modules.get("torch")
    ready = loaded is not None and loaded.distributed.is_available() and loaded.distributed.is_initialized()
    if not ready and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    from torch import distributed

    if not ready:
        _join(str(device))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        if not ready:
            distributed.destroy_process_group()


def _join(device: str) -> None:
    import torch
    from torch import distributed

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, count = next(iter(distributed.rendezvous("env://")))
    # torchrun keeps its store when it starts processes again: the addresses of those that died are still there.
    name = f"ensdistill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_groups)}"
    backend = "nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, store=distributed.PrefixStore(name, store), rank=rank, world_size=count)
