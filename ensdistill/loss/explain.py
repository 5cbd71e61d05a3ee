"""How the CUDA kernels would lay a problem over threads, also on a machine without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.loss import _native
from ensdistill.loss.checks import check_int, check_one_of
from ensdistill.loss.settings import DIVERGENCES, Divergence

_BYTES = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.uint8: 1}
# The kernels' names of dtypes: Element in csrc/problem.h.
ELEMENTS = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.uint8: "u8",
}
# A pair of these has no kernels of its own, see csrc/cuda/rows.
_HALVES = {torch.bfloat16, torch.float16}
_H100_SHARED = 232_448  # bytes of shared memory that a block may have, from compute capability 9.0 on
# csrc/cuda/plan.h. Entries beyond that many fit no shared memory, and their table's size no int.
_MOST_MEMBERS, _MOST_CLASSES, _MOST_ENTRIES = 1024, 1 << 30, 1 << 24
# Up to these sizes every plan fits the shared memory of all supported GPUs, so the check is skipped.
_FEW_MEMBERS, _FEW_CLASSES, _FEW_ENTRIES = 64, 1 << 18, 1000
_MOST_FLOAT_TEMPERATURE = 32.0  # csrc/problem.h


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a plan depends on: the arguments of `kernel_plan`, and the temperature, which decides about
    double precision."""

    rows: int
    classes: int
    members: int
    student: torch.dtype
    targets: torch.dtype
    divergence: str
    combiner: str
    entries: int
    classes_first: bool
    device: torch.device | int | None
    temperature: float = 1.0


@dataclass(frozen=True)
class KernelPlan:
    """One launch of the loss's kernel.

    Attributes
    ----------
    layout : str
        ``staged``: a thread for each row, the block's rows copied flat to shared memory. ``strided``: a
        thread for each row, reading device memory. ``tile``, ``block``, ``cluster``: lanes of a warp, a
        block, several blocks share a row that stays on chip. ``reread``: a block for each row, read once more
        in each sweep. ``doubles``: the same in double precision.
    threads, cluster_blocks, threads_per_row, rows_per_block, vectors_per_thread : int
        Of a block; blocks that share a row; and so on.
    shared_bytes : int
        Shared memory of a block.
    bytes : float
        Through device memory, predicted: loss and gradient of all rows.
    members_at_once : bool
        Whether a row's members are all on chip together, else two in turn beside their sum. False for other
        layouts than ``tile``, ``block`` and ``cluster``, and for sparse targets.
    registers : int or None
        Of a thread; None where the CUDA library isn't built.
    """

    layout: str
    threads: int
    cluster_blocks: int
    threads_per_row: int
    rows_per_block: int
    vectors_per_thread: int
    shared_bytes: int
    bytes: float
    members_at_once: bool
    registers: int | None

    def __str__(self) -> str:
        return (
            f"{self.layout}: {self.threads} threads a block, {self.threads_per_row} a row, "
            f"{self.vectors_per_thread} vectors each; "
            f"{self.registers or '?'} registers, {self.shared_bytes:,} B shared memory; "
            f"{self.bytes / 1e6:,.1f} MB through device memory"
        )


def kernel_plan(
    rows: int,
    classes: int,
    *,
    members: int = 1,
    student: torch.dtype = torch.float32,
    targets: torch.dtype | None = None,
    divergence: Divergence = "forward_kl",
    combiner: Combiner = "prob",
    entries: int = 0,
    classes_first: bool = False,
    device: torch.device | int | None = None,
) -> KernelPlan:
    """The plan for contiguous logits.

    Parameters
    ----------
    rows, classes, members : int
        N, C, K.
    student, targets : torch.dtype
        float64, float32, bfloat16, float16; targets also uint8, for codes. ``targets=None``: the student's.
    divergence, combiner : str
        As in :func:`ensdistill.distillation_loss`.
    entries : int
        k of sparse targets (`TopK`, `Counts`), padding included; 0 for dense ones.
    classes_first : bool
        [N, C, H, W] instead of [..., C].
    device : torch.device or int, optional
        Whose shared memory to plan for. Default: the current GPU; where there is none, an H100.

    Raises
    ------
    ValueError, TypeError
        A number below 1 or beyond the limit of a GPU, an unknown name or dtype; a plan that needs more shared
        memory than a block can have, as with very many members (of `classes_first` logits) or entries.

    Examples
    --------
    >>> kernel_plan(8192, 10).layout, kernel_plan(8192, 1000).layout, kernel_plan(1024, 50_257).layout
    ('staged', 'tile', 'cluster')
    """
    targets = student if targets is None else targets
    check_int("rows", rows, 1, 2**63 - 1, "what int64 holds")
    check_int("classes", classes, 1, _MOST_CLASSES, "what CUDA kernels take")
    check_int("members", members, 1, _MOST_MEMBERS, "what CUDA kernels take")
    check_int("entries", entries, 0, _MOST_ENTRIES, "0 being dense targets")
    if not isinstance(classes_first, bool):
        raise TypeError(f"classes_first: expected a bool; got {classes_first!r}")
    for name, dtype in (("student", student), ("targets", targets)):
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{name}: expected a torch.dtype; got {dtype!r}")
        if dtype not in _BYTES or (name == "student" and dtype == torch.uint8):
            raise ValueError(
                f"{name}: expected a floating-point dtype{', or uint8' * (name == 'targets')}; got {dtype}"
            )
    check_one_of("divergence", divergence, DIVERGENCES)
    check_one_of("combiner", combiner, COMBINERS)
    plan = _plan(
        Launch(
            rows, classes, members, student, targets, divergence, combiner, entries, classes_first, device
        ),
        ("members", "entries", "classes"),
    )
    registers = _native.kernel_registers(
        layout=plan["layout"],
        student=ELEMENTS[student],
        targets=ELEMENTS[targets],
        divergence=divergence,
        sparse=entries > 0,
    )
    return KernelPlan(**plan, registers=registers)


def check_launch(launch: Launch) -> None:
    """That a GPU can run a loss of so many classes, members and entries; the arguments of a loss are named.

    Raises
    ------
    ValueError
        It can't: a row's entries, or the members' softmaxes, have to fit a block's shared memory.
    """
    if launch.members <= _FEW_MEMBERS and launch.classes <= _FEW_CLASSES and launch.entries <= _FEW_ENTRIES:
        return
    for name, value, most, what in (
        ("targets", launch.members, _MOST_MEMBERS, "members"),
        ("student_logits", launch.classes, _MOST_CLASSES, "classes"),
        ("targets.ids", launch.entries, _MOST_ENTRIES, "entries for each row"),
    ):
        if value > most:
            raise ValueError(f"{name}: expected at most {most} {what} on a GPU; got {value}")
    _plan(launch, ("targets", "targets.ids", "student_logits"))


def _plan(launch: Launch, names: tuple[str, str, str]) -> dict[str, Any]:
    """A plan that can be launched. ``names`` are the arguments that may be too large: members, entries,
    classes."""
    shared, clusters = _H100_SHARED, True
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(
            launch.device if launch.device is not None else torch.cuda.current_device()
        )
        shared, clusters = properties.shared_memory_per_block_optin, properties.major >= 9  # type: ignore[attr-defined]
    dtypes, entries = {launch.student, launch.targets}, launch.entries
    plan = _native.kernel_plan(
        rows=launch.rows,
        classes=launch.classes,
        members=launch.members,
        student_bytes=_BYTES[launch.student],
        target_bytes=0 if entries else _BYTES[launch.targets],
        geometric=launch.combiner != "prob" and launch.members > 1,
        doubles=torch.float64 in dtypes
        or (not entries and dtypes == _HALVES)
        or launch.temperature > _MOST_FLOAT_TEMPERATURE,
        divergence=launch.divergence,
        unit_classes=not launch.classes_first,
        flat=not launch.classes_first,
        entries=entries,
        shared_limit=shared,
        clusters=clusters,
    )
    if plan["shared_bytes"] > shared:
        name, what, got = (
            (names[0], "members", launch.members)
            if not entries
            else (names[1], "entries for each row", entries)
            if entries > _FEW_ENTRIES
            else (names[2], "classes beside sparse targets", launch.classes)
        )
        raise ValueError(
            f"{name}: expected fewer {what} on this GPU; got {got}: its plan needs {plan['shared_bytes']:,} "
            "bytes of shared memory, "
            f"and a block can have {shared:,}"
        )
    return plan
