"""A method's own module beside the student, and the student's layers that a method reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class WithCompanion(nn.Module):
    """A student and a method's own module, trained as one model.

    Called, it is the student. The student's parameters and modules have the names that they have without the
    companion, so that patterns of names match them; those of the companion begin with ``method``.

    Examples
    --------
    >>> whole = WithCompanion(nn.Linear(2, 3), nn.Linear(3, 4, bias=False))
    >>> [name for name, _ in whole.named_parameters()]
    ['weight', 'bias', 'method.weight']
    """

    def __init__(self, student: nn.Module, companion: nn.Module) -> None:
        super().__init__()
        self.student, self.companion = student, companion

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.student(*inputs, **named)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        yield from self.student.named_modules(memo, prefix, remove_duplicate)
        own = f"{prefix}.method" if prefix else "method"
        yield from self.companion.named_modules(memo, own, remove_duplicate)


def student_of(model: nn.Module) -> nn.Module:
    """The student itself, without a companion."""
    return model.student if isinstance(model, WithCompanion) else model


def companion_of(model: nn.Module) -> nn.Module | None:
    """The method's own module, or None."""
    return model.companion if isinstance(model, WithCompanion) else None


def notes_of(companion: nn.Module | None) -> tuple[str, ...]:
    """The texts ``note`` of the parts of a method's own module, as one that reports a collapse."""
    parts = () if companion is None else companion.modules()
    notes = [getattr(part, "note", "") for part in parts]
    return tuple(note for note in notes if isinstance(note, str) and note)


def check_layers(model: nn.Module, layers: Sequence[str], argument: str = "layers") -> None:
    """Raise ValueError, which begins with ``argument``, for a layer that a network does not have."""
    names = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in names:
            raise ValueError(
                f"{argument}: expected modules of {type(model).__name__}, {', '.join(names[:12])}"
                f"{', ...' if names[12:] else ''}; got {layer!r}"
            )


@contextmanager
def features_of(model: nn.Module, layers: Sequence[str], *, always: bool = False) -> Iterator[dict[str, Any]]:
    """In here a dict holds the outputs of some layers of the last call, in float32.

    Parameters
    ----------
    model : Module
    layers : sequence of str
        Names of its modules.
    always : bool
        Whether the outputs are also taken in eval mode.
    """
    check_layers(model, layers)
    features: dict[str, Any] = {}

    def take(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if always or module.training:
                features[name] = output.float() if isinstance(output, Tensor) else output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(take(name)) for name in layers]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def feature(features: Mapping[str, Any], name: str, argument: str = "layers") -> Tensor:
    """One layer's output.

    Raises
    ------
    ValueError
        It is no tensor with rows, or the layer was not called.
    """
    found = features.get(name)
    if not isinstance(found, Tensor) or found.ndim < 2:
        got = f"{list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{argument}: expected layer {name!r} to return a tensor [N, ...]; got {got}")
    return found
