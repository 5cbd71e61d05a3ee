"""A member as the beginning of a smaller student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ensdistill.common.describe import class_path, module_factory
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.data.samples import as_samples
from ensdistill.student.inputs import Preparation, takes_ids
from ensdistill.student.shrink.layers import weights
from ensdistill.student.shrink.low_rank import factorised
from ensdistill.student.shrink.machine import check_machine
from ensdistill.student.shrink.rounding import Range, Rounding
from ensdistill.student.shrink.settings import BITS, RANKS, Shrink
from ensdistill.student.shrink.structured import without_channels
from ensdistill.teachers.members import Member, Preprocessed, TorchMember
from ensdistill.teachers.members.module import is_plain
from ensdistill.teachers.members.standardised import Standardised

ROWS = 256  # whose inputs of layers are observed before the training


@dataclass(frozen=True)
class Shrunk:
    """A student that begins as a smaller copy of a member.

    Parameters
    ----------
    factory : callable
        Makes the student, for :meth:`ensdistill.student.StudentTrainer.distill`.
    weights : dict of str to Tensor
        Its first weights, for the same method.
    preprocess : Preprocess or None
        The member's, which is the student's, too.
    member : str
        The member's name.
    settings : Shrink
    """

    factory: Callable[[], nn.Module]
    weights: Mapping[str, Tensor]
    preprocess: Preprocess | None
    member: str
    settings: Shrink

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for ``distill`` and ``direct``, without the factory."""
        return {"weights": self.weights, "preprocess": self.preprocess}


def shrink(member: Member, settings: Shrink | Mapping[str, Any], samples: Any) -> Shrunk:
    """Prune, factorise or quantise a copy of a member's network.

    The result is what a training begins with: the student is distilled from the ensemble's cache by
    :class:`ensdistill.student.StudentTrainer` like any other, and its file holds few bytes. Of a regression
    the network begins in the units of the member's labels.

    Parameters
    ----------
    member : Member
        A network with a factory (:class:`~ensdistill.teachers.members.TorchMember`), also with a preprocess.
    settings : Shrink, or a mapping of its fields
    samples : samples
        Some rows, as the member takes them: its layers' shapes are followed on two, and the ranges of their
        inputs begin with 256.

    Raises
    ------
    ValueError
        The member is no network, or none that can be built again; the way does not fit its layers (names the
        layer or the reason); or the machine can't round numbers so.
    ImportError
        ``structured`` needs torch-pruning.

    Examples
    --------
    >>> import numpy as np
    >>> from ensdistill.models import MLP
    >>> factory = partial(MLP, inputs=8, hidden=[64], outputs=3)
    >>> member = TorchMember(factory(), factory=factory)
    >>> student = shrink(member, {"prune": 0.5}, np.zeros((4, 8), np.float32))
    >>> sum(int(mask.sum()) for name, mask in student.weights.items() if name.endswith("mask"))
    352
    """
    if isinstance(settings, Mapping):
        settings = Shrink(**settings)
    own, preprocess = (
        (member.member, member.preprocess) if isinstance(member, Preprocessed) else (member, None)
    )
    network, factory = _network(own)
    some = Preparation(preprocess, takes_ids(network))(as_samples(samples, "samples")[:ROWS])
    pair = _rows(some, 2)
    ways = settings.ways
    check_codes(settings)
    if settings.structured is not None:
        network, factory = without_channels(network, factory, settings.structured, pair)
    if any(name in ways for name in RANKS):
        network, factory = factorised(network, factory, settings)
    if settings.prune is not None or settings.quantise or settings.post_training:
        network, factory = _rounded(network, factory, settings, some)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return Shrunk(factory, state, preprocess, member.name, settings)


def check_codes(settings: Shrink, device: torch.device | str = "cpu", precision: str = "no") -> None:
    """Raise ValueError for codes of settings that this machine can't compute; see
    :func:`ensdistill.student.shrink.machine.check_machine`."""
    if (code := settings.quantise or settings.post_training) is not None:
        check_machine(BITS[code], settings.quantise is not None, device, precision)


def _network(member: Member) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """A copy of a member's network, in units of a regression's own, and what makes such a one."""
    if not isinstance(member, TorchMember) or not is_plain(member):
        raise ValueError(
            f"shrink.member: expected a network, ensdistill.teachers.members.TorchMember; {member.name} is a "
            f"{class_path(type(member))}: name another member, or let a model be distilled from all"
        )
    if member.recipe is None or "class_path" not in member.recipe:
        raise ValueError(
            f"shrink.member: {member.name}: expected a network that a factory builds again; it has none "
            "(those of Hugging Face are built from a config): TorchMember(module, factory=...)"
        )
    network, factory = copy.deepcopy(member.module).cpu().eval(), module_factory(member.recipe)
    if isinstance(network, Standardised):
        network, factory = network.model, factory.keywords["model"]
    return network.requires_grad_(True), factory


def _rows(inputs: Any, count: int) -> Any:
    """The first rows, at least two: a batch of one may be taken for another shape."""
    if isinstance(inputs, Mapping):
        return {name: _rows(part, count) for name, part in inputs.items()}
    return torch.cat([inputs, inputs])[:count] if len(inputs) < count else inputs[:count]


def _rounded(
    network: nn.Module, factory: Callable[[], nn.Module], settings: Shrink, some: Any
) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """The network with masks, and rounded as the settings demand."""
    own, code = weights(network), settings.quantise or settings.post_training
    if not own:
        raise ValueError(
            f"shrink: {settings}: expected linear layers, convolutions or embeddings; "
            f"{type(network).__name__} has none: choose another member"
        )
    masks = {} if settings.prune is None else _masks(network, settings.prune)
    made = partial(
        Rounding,
        model=factory,
        pruned=list(masks),
        bits=None if code is None else BITS[code],
        aware=settings.quantise is not None,
    )
    student = made()
    plain = network.state_dict()
    state = student.state_dict()
    for name in state:
        inner = name.removeprefix("model.")
        if inner.endswith(".original"):
            inner = inner.removesuffix(".original").replace("parametrizations.", "")
        if inner in plain:
            state[name] = plain[inner]
        elif inner.endswith(".0.mask"):
            state[name] = masks[inner.removesuffix(".0.mask").replace("parametrizations.", "")]
    student.load_state_dict(state)
    _observe(student, some)
    return student.eval(), made


def _masks(network: nn.Module, share: float) -> dict[str, Tensor]:
    """By tensor where its weights stay: those of largest magnitude of all tensors together."""
    other = copy.deepcopy(network)
    own = weights(other)
    prune.global_unstructured(list(own.values()), pruning_method=prune.L1Unstructured, amount=share)
    masks = {name: getattr(layer, f"{tensor}_mask").bool() for name, (layer, tensor) in own.items()}
    if empty := [name for name, mask in masks.items() if not mask.any()]:
        raise ValueError(
            f"shrink.prune: {share} leaves no weight of {empty[0]}, so no input reaches the outputs through "
            "it: take a smaller share"
        )
    return masks


def _observe(student: nn.Module, some: Any) -> None:
    """Begin the ranges of layers' inputs with those of some rows."""
    ranges = [part for part in student.modules() if isinstance(part, Range)]
    if not ranges:
        return
    student.eval()
    for part in ranges:
        part.train()
    with torch.no_grad():
        student(**some) if isinstance(some, Mapping) else student(some)
