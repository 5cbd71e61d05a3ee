"""Work that several processes share: who this one is among those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``count``; 0 of 1 where it is alone."""

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def processes(device: str | torch.device = "cpu") -> Iterator[Processes]:
    """The processes of torch's group; where ``torchrun`` says that there are several, a group is made (gloo, or nccl for a GPU) for the
    time being. A process whose work fails leaves without waiting for the others, so that ``torchrun`` can start them all again."""
    if not distributed.is_available() or (not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield Processes()
        return
    own = not distributed.is_initialized()
    if own:
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        if own:
            distributed.destroy_process_group()
