"""Work that several processes share: the rank of this one among those that ``torchrun`` started. A single
process loads no torch."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_groups = itertools.count()  # made by this process, in the same order as by the others


class ProcessFailed(RuntimeError):
    """Another process of the group failed, so that this one can't go on either."""


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``count``; 0 of 1 where it is alone.

    Parameters
    ----------
    rank, count : int
    device : str or torch.device
        Where the tensors lie that the processes exchange.
    """

    rank: int = 0
    count: int = 1
    device: Any = "cpu"

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the processes' tensors, which have the same shape and a floating dtype, with the same
        bits in all."""
        if self.count == 1:
            return tensor
        from torch import distributed

        total = tensor.detach().to(self.device, copy=True).contiguous()
        distributed.all_reduce(total)
        return (total / self.count).to(tensor.device)

    def first(self, data: bytes | None, source: int = 0) -> bytes | None:
        """The ``data`` of process 0, or of another one, in all of them; theirs are not looked at."""
        if self.count == 1:
            return data
        import torch
        from torch import distributed

        size = torch.tensor([-1 if data is None else len(data)], device=self.device)
        distributed.broadcast(size, source)
        if size.item() < 0:
            return None
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == source and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        content = content.to(self.device)
        distributed.broadcast(content, source)
        return content.cpu().numpy().tobytes()

    def each(self, value: int) -> list[int]:
        """The integers, below 2^63, of all processes, by rank."""
        if self.count == 1:
            return [value]
        import torch
        from torch import distributed

        values = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        values[self.rank] = value
        distributed.all_reduce(values)
        return values.tolist()

    def by_rank(self, tensor: Tensor) -> Tensor:
        """The processes' tensors, which have the same shape and a floating dtype, stacked by rank:
        [count, ...]."""
        if self.count == 1:
            return tensor.detach().unsqueeze(0)
        from torch import distributed

        # Each process fills its own place, so that a sum with zeros keeps every bit, NaN too.
        parts = tensor.new_zeros(self.count, *tensor.shape, device=self.device)
        parts[self.rank] = tensor.detach()
        distributed.all_reduce(parts)
        return parts.to(tensor.device)

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors, which have the same shapes and dtypes in all processes, by those of process
        0."""
        if self.count == 1 or not tensors:
            return
        import torch
        from torch import distributed

        with torch.no_grad():
            content = [t.detach().contiguous().flatten().view(torch.uint8) for t in tensors]
            joined = torch.cat([part.to(self.device) for part in content])
            distributed.broadcast(joined, 0)
            for tensor, part in zip(tensors, joined.split([len(part) for part in content]), strict=True):
                # A copy: numbers can't be read from a place that is not aligned to their size.
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def agree(self, data: bytes) -> bool:
        """Whether all processes have the same ``data``."""
        return self.count == 1 or self.foremost(self.first(data) != data) is None

    def foremost(self, yes: bool) -> int | None:
        """The first process in which ``yes`` is true; None where it is in none."""
        if self.count == 1:
            return 0 if yes else None
        import torch
        from torch import distributed

        rank = torch.tensor([self.rank if yes else self.count], device=self.device)
        distributed.all_reduce(rank, distributed.ReduceOp.MIN)
        return None if rank.item() == self.count else int(rank)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does by itself, without waiting for others: where it fails in one, all
        raise.

        Raises
        ------
        ProcessFailed
            The work of another process failed; has that process's error in words.
        """
        if self.count == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if (rank := self.foremost(failure is not None)) is not None:
            text = self.first(f"{type(failure).__name__}: {failure}".encode(), rank) or b""
            if failure is not None:
                raise failure
            raise ProcessFailed(f"process {rank} of {self.count} failed: {text.decode()}")


@contextmanager
def processes(device: Any = "cpu") -> Iterator[Processes]:
    """The processes of torch's group; where ``torchrun`` started several, a group is made (gloo, or nccl for
    a GPU) for the time being. A process whose work fails leaves without waiting for the others, so that
    ``torchrun`` can start them all again."""
    loaded = sys.modules.get("torch")
    ready = loaded is not None and loaded.distributed.is_available() and loaded.distributed.is_initialized()
    if not ready and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=device)
        return
    from torch import distributed

    if not ready:
        _join(str(device))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        # Where this process failed, others may wait for it: they get an error, though it may live on.
        if not ready:
            distributed.destroy_process_group()


def _join(device: str) -> None:
    import torch

    # Its functions have the group of the time of their import as a default: imported later, they would keep
    # the group's connections open beyond its end.
    import torch.distributed.nn.functional
    from torch import distributed

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, count = next(iter(distributed.rendezvous("env://")))
    # torchrun keeps its store when it starts processes again: the addresses of those that died are still
    # there.
    name = f"ensdistill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_groups)}"
    backend = "nccl" if on_gpu else "gloo"
    distributed.init_process_group(
        backend, store=distributed.PrefixStore(name, store), rank=rank, world_size=count
    )
