"""Whether torch can round a network's numbers on this machine."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ensdistill.student.shrink.codes import GROUP, codes_of, packed, scales_of, unpacked
from ensdistill.student.shrink.rounding import Range, Rounded

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_machine(bits: int, aware: bool, device: torch.device | str = "cpu", precision: str = "no") -> None:
    """Refuse codes that torch can't compute on a device: each operation of the training and of the file runs
    once, on a few numbers.

    Parameters
    ----------
    bits : {8, 4}
    aware : bool
        Whether the training rounds (``quantise``), or the weights are rounded after it (``post_training``).
    device : device
        The one of the training.
    precision : {"no", "bf16", "fp16"}
        That of the training's forward pass, in which inputs of layers are rounded.

    Raises
    ------
    ValueError
        Names the setting, the operation that the machine lacks, and the remedy.

    Examples
    --------
    >>> check_machine(8, True, "cpu", "bf16")
    """
    dtype = _DTYPES.get(precision, torch.float32)

    def stored() -> None:
        weight = _numbers(device)
        codes = codes_of(weight, scales_of(weight, bits), bits).flatten()
        if not torch.equal(unpacked(packed(codes, bits), len(codes), bits), codes):
            raise RuntimeError("other codes come back")

    def weights() -> None:
        _backward(Rounded(bits), _numbers(device))

    def inputs() -> None:
        _backward(Range().to(device).train(), _numbers(device).to(dtype))

    needed: dict[str, Callable[[], None]] = {f"codes of {bits} bits": stored}
    if aware:
        needed[f"rounded weights of {bits} bits with gradients"] = weights
    if aware and bits == 8:
        needed[f"fake quantisation of {dtype} (torch.fake_quantize_per_tensor_affine)"] = inputs
    for what, run in needed.items():
        try:
            run()
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(_refusal(bits, aware, device, precision, what, error)) from error


def _refusal(
    bits: int, aware: bool, device: torch.device | str, precision: str, what: str, error: Exception
) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    others = [f"post_training: int{bits}, which rounds the weights after the training"] if aware else []
    others += ["quantise: int4, which rounds no inputs"] if aware and bits == 8 else []
    others += ["mixed_precision: no"] if precision != "no" else []
    remedy = ", or ".join([*others, "prune, structured or a rank in its place"])
    return (
        f"shrink.{'quantise' if aware else 'post_training'}: int{bits}: expected a machine with {what}; "
        f"torch {torch.__version__} has none on {torch.device(device).type} ({reason}): take {remedy}"
    )


def _numbers(device: torch.device | str) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * GROUP, device=device).view(2, GROUP)


def _backward(layer: torch.nn.Module, numbers: torch.Tensor) -> None:
    own = numbers.requires_grad_()
    layer(own).float().sum().backward()
    if own.grad is None or not bool(own.grad.isfinite().all()):
        raise RuntimeError("the gradient is not finite")
