"""Every wrong use of the encoders is an error that names the argument and the place."""

import math

import pytest
import torch
from closed_forms import make_codes, make_logits

from ensdistill.loss import _native
from ensdistill.loss.encoders import _implementation, quantize_logits, sample_counts, top_k_targets
from ensdistill.loss.targets import QuantizedLogits

IMPLS = ("fused", "reference")


def damaged(value: float, dtype=torch.float32) -> torch.Tensor:
    logits = make_logits(2, 6, 9, seed=0, dtype=dtype).view(2, 2, 3, 9)
    logits[1, 1, 0, 4] = value
    return logits


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "got NaN for class 4"), (math.inf, r"got \+inf for class 4")]
)
def test_a_bad_number_is_named(value, message, impl):
    for combiner in ("prob", "logit"):
        with pytest.raises(
            ValueError, match=rf"targets: member 1, row \(1, 0\): expected logits that are finite.*{message}"
        ):
            top_k_targets(damaged(value), 2, combiner=combiner, impl=impl)
        with pytest.raises(ValueError, match=rf"targets: member 1, row \(1, 0\): .*{message}"):
            sample_counts(damaged(value), 2, seed=0, combiner=combiner, impl=impl)
    with pytest.raises(ValueError, match=rf"logits: member 1, row \(1, 0\): .*{message}"):
        quantize_logits(damaged(value), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_without_a_class_is_named(impl):
    logits = make_logits(2, 6, 4, seed=0)
    logits[1, 3] = -torch.inf
    for encode in (
        quantize_logits,
        lambda z, impl: top_k_targets(z, 1, impl=impl),
        lambda z, impl: sample_counts(z, 1, seed=0, impl=impl),
    ):
        with pytest.raises(ValueError, match="member 1, row 3: every class is masked"):
            encode(logits, impl=impl)
    logits[1, 3, 0], logits[0, 3, 0] = 0, -torch.inf
    top_k_targets(logits, 1, impl=impl)
    with pytest.raises(
        ValueError,
        match=r"targets: row 3: each class is masked .* by a member, so combiner='logit' leaves none",
    ):
        top_k_targets(logits, 1, combiner="logit", impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [1.1e38, -3e38])
def test_a_logit_too_large_to_be_stored_is_named(value, impl):
    with pytest.raises(
        ValueError, match=r"member 1, row \(1, 0\): expected logits within 1e38 of zero.*e\+38 for class 4"
    ):
        quantize_logits(damaged(value), impl=impl)


def test_bad_codes_are_named():
    codes = make_codes(2, 5, 9, seed=0)
    scale = codes.scale.clone()
    scale[1, 3] = torch.nan
    with pytest.raises(
        ValueError, match="targets: member 1, row 3: expected a finite scale and offset; got nan and"
    ):
        top_k_targets(QuantizedLogits(codes.codes, scale, codes.offset), 2)


LOGITS = torch.zeros(2, 3, 4)
CODES = QuantizedLogits(torch.zeros(2, 3, 4, dtype=torch.uint8), torch.ones(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: quantize_logits([1.0]),
            TypeError,
            r"logits: expected a Tensor \[K, ..., C\] or EnsembleLogits; got list",
        ),
        (lambda: quantize_logits(CODES), TypeError, "logits: expected a Tensor .* got QuantizedLogits"),
        (
            lambda: quantize_logits(LOGITS[0]),
            ValueError,
            r"logits: expected \[K, ..., C\].*got \[3, 4\]; of one teacher's .* pass logits\[None\]",
        ),
        (lambda: quantize_logits(LOGITS.int()), TypeError, "logits: expected float64, .*; got torch.int32"),
        (
            lambda: quantize_logits(LOGITS[:, :, :0]),
            ValueError,
            r"at least one member, one row dimension and one class; got \[2, 3, 0\]",
        ),
        (
            lambda: quantize_logits(LOGITS, impl="compile"),
            ValueError,
            "impl: expected one of fused, reference; got 'compile'",
        ),
        (lambda: top_k_targets(LOGITS, 0), ValueError, "k: expected 1 to 4, the number of classes; got 0"),
        (lambda: top_k_targets(LOGITS, 5), ValueError, "k: expected 1 to 4, the number of classes; got 5"),
        (lambda: top_k_targets(LOGITS, 2.0), TypeError, r"k: expected an int; got 2\.0"),
        (
            lambda: top_k_targets(LOGITS.byte(), 2),
            TypeError,
            "got torch.uint8; wrap codes in QuantizedLogits",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, temperature=0),
            ValueError,
            "temperature: expected a number from 0.0001 to 10000; got 0",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, combiner="mean"),
            ValueError,
            "combiner: expected one of prob, logit, log_prob; got 'mean'",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, weights=[1]),
            ValueError,
            r"weights: expected one for each of the 2 members, \[2\]; got shape \[1\]",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, weights=[1, -1]),
            ValueError,
            "weights: expected finite numbers of at least 0; got",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, weights=[0, 0]),
            ValueError,
            "weights: expected a sum above 0; got",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, weights="no"),
            TypeError,
            "weights: expected a Tensor or a sequence of 2 numbers; got 'no'",
        ),
        (
            lambda: top_k_targets(LOGITS, 2, weights=torch.ones(2) * 1j),
            TypeError,
            "weights: expected real numbers; got torch.complex64",
        ),
        (
            lambda: top_k_targets(QuantizedLogits(CODES.codes, CODES.scale.double(), CODES.offset), 2),
            TypeError,
            "targets.scale: expected torch.float32",
        ),
        (
            lambda: top_k_targets(QuantizedLogits(CODES.codes, CODES.scale, CODES.offset[0]), 2),
            ValueError,
            r"targets.offset: expected \[2, 3\], one for each member and row; got shape \[3\]",
        ),
        (
            lambda: top_k_targets(QuantizedLogits(LOGITS, CODES.scale, CODES.offset), 2),
            TypeError,
            "targets.codes: expected torch.uint8",
        ),
        (lambda: top_k_targets("logits", 2), TypeError, "targets: expected a Tensor of logits .* got str"),
        (
            lambda: sample_counts(LOGITS, 0, seed=0),
            ValueError,
            "draws: expected 1 to 2147483647, what int32 counts; got 0",
        ),
        (
            lambda: sample_counts(LOGITS, 2, seed=-1),
            ValueError,
            "seed: expected 0 to 9223372036854775807, what int64 holds; got -1",
        ),
        (
            lambda: sample_counts(LOGITS, 2, seed=0, row_ids=torch.zeros(3)),
            TypeError,
            "row_ids: expected a torch.int64 Tensor; got torch.float32",
        ),
        (
            lambda: sample_counts(LOGITS, 2, seed=0, row_ids=torch.arange(2)),
            ValueError,
            r"row_ids: expected one for each row, \[3\]; got shape \[2\]",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_native_checks():
    """The ops check their arguments themselves, for direct calls."""
    ops, codes = torch.ops.ensdistill, CODES.codes
    for call, message in (
        (lambda: ops.encode_uint8(LOGITS.int()), "logits: expected floating-point logits"),
        (lambda: ops.encode_uint8(LOGITS.transpose(1, 2)), "logits: expected unit stride over classes"),
        (
            lambda: ops.encode_top_k(LOGITS[0], None, None, None, 1.0, "prob", 2),
            r"targets: expected \[K, N, C\]",
        ),
        (
            lambda: ops.encode_top_k(codes, None, None, None, 1.0, "prob", 2),
            "scale and offset: expected with uint8 codes",
        ),
        (lambda: ops.encode_top_k(LOGITS, None, None, None, 1.0, "prob", 5), r"k: expected 1\.\.4, got 5"),
        (
            lambda: ops.encode_top_k(LOGITS, None, None, torch.ones(2), 1.0, "prob", 2),
            r"weights: expected contiguous float64 \[2\]",
        ),
        (
            lambda: ops.encode_top_k(LOGITS, None, None, None, 0.0, "prob", 2),
            "temperature: expected > 0, got 0",
        ),
        (
            lambda: ops.encode_counts(LOGITS, None, None, None, 1.0, "mean", 2, 0, None),
            "combiner: unknown value 'mean'",
        ),
        (
            lambda: ops.encode_counts(LOGITS, None, None, None, 1.0, "prob", 2, 0, torch.zeros(2).long()),
            r"row_ids: expected contiguous int64 \[3\]",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


class Elsewhere(torch.Tensor):
    """A tensor whose device is a GPU, which this machine need not have."""

    device = torch.device("cuda:0")


def test_a_device_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr(_native, "_cuda", None)
    for name in ("targets", "logits"):
        with pytest.raises(
            NotImplementedError,
            match=f"{name}: on device cuda:0, but this ensdistill was built without its CUDA kernels",
        ):
            _implementation("fused", torch.zeros(2, 3, 4).as_subclass(Elsewhere), name, None, None)
