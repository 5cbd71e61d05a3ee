"""The ways in which a member becomes a smaller student."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ensdistill.common.scalars import plain_fields, real

Code = Literal["int8", "int4"]
BITS: dict[str, int] = {"int8": 8, "int4": 4}
SHARES = ("prune", "structured", "rank", "energy", "budget")
RANKS = ("rank", "energy", "budget")
CODES = ("quantise", "post_training")


@dataclass(frozen=True)
class Shrink:
    """How a member becomes a smaller student. At least one way; they are applied in the order below.

    Parameters
    ----------
    structured : float, optional
        The share, in (0, 1), of the channels of each layer that is removed, by the norms of dependent groups
        (DepGraph). Needs the package ``torch-pruning`` (``pip install 'ensdistill[shrink]'``).
    rank : float, optional
        The share of its full rank that each linear layer and convolution keeps, as a product of two.
    energy : float, optional
        The share of the squared singular values that each of them keeps, in place of ``rank``.
    budget : float, optional
        The share of the numbers of these layers that stay: the same energy for all, the largest that fits.
    prune : float, optional
        The share of all weights that become zero, those of least magnitude. The file holds the others.
    quantise : {"int8", "int4"}, optional
        The training sees weights that are rounded to these codes, and with int8 inputs of layers that are
        rounded to 8 bits; the file holds the codes.
    post_training : {"int8", "int4"}, optional
        The weights are rounded after the training, in place of ``quantise``.
    member : str, optional
        The member's name. By default the network of least held-out loss among the members with weight.

    Raises
    ------
    ValueError
        A share outside (0, 1), another code, none of the ways, or two where one stands in place of the other.

    References
    ----------
    Fang et al. (2023), "DepGraph: Towards Any Structural Pruning"; Jacob et al. (2018), "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".

    Examples
    --------
    >>> print(Shrink(prune=0.7, quantise="int8"))
    prune 0.7, quantise int8
    """

    structured: float | None = None
    rank: float | None = None
    energy: float | None = None
    budget: float | None = None
    prune: float | None = None
    quantise: Code | None = None
    post_training: Code | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in SHARES:
            share = getattr(self, name)
            if share is not None and not (real(share) and 0 < share < 1):
                raise ValueError(f"shrink.{name}: expected a share between 0 and 1; got {share!r}")
        for name in CODES:
            code = getattr(self, name)
            if code is not None and code not in get_args(Code):
                raise ValueError(f"shrink.{name}: expected int8 or int4; got {code!r}")
        for names in (RANKS, CODES):
            if len(given := [name for name in names if getattr(self, name) is not None]) > 1:
                raise ValueError(
                    f"shrink.{given[1]}: expected none beside {given[0]}, in whose place it stands; got both"
                )
        if not self.ways:
            raise ValueError(
                f"shrink: expected at least one of {', '.join((*SHARES, *CODES))}; got none, such as "
                "prune: 0.7"
            )

    @property
    def ways(self) -> dict[str, float | str]:
        """The ways that are set, in the order of their application."""
        given = ((one.name, getattr(self, one.name)) for one in fields(self) if one.name != "member")
        return {name: value for name, value in given if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.ways.items())
