"""The choice of a plan for the CUDA kernels: plain arithmetic, so it is tested everywhere."""

from itertools import product

import pytest
import torch

from ensdistill import _native
from ensdistill.plans import kernel_plan

H100, A10 = 232_448, 101_376
CLASSES = (1, 2, 10, 32, 33, 1000, 1024, 1025, 4096, 4097, 14_000, 50_257, 128_256, 152_064, 262_144)


def plan(
    classes: int, members: int, student: int, target: int, *, flat: bool = True, entries: int = 0, limit: int = H100, reverse: bool = False
):
    target = 0 if entries else target
    return _native.kernel_plan(1000, classes, members, student, target, False, False, reverse, True, flat, entries, limit, limit == H100)


@pytest.mark.parametrize("limit", [H100, A10])
@pytest.mark.parametrize(("student", "target"), [(4, 4), (4, 1), (2, 2), (2, 1), (2, 4)])
def test_a_plan_covers_the_row_and_fits(student, target, limit):
    vector = 16 // student
    for classes, members, flat, entries, reverse in product(CLASSES, (1, 2, 8, 32), (True, False), (0, 64), (False, True)):
        if entries and members > 1:
            continue
        p = plan(classes, members, student, target, flat=flat, entries=entries, limit=limit, reverse=reverse)
        case = (classes, members, flat, entries, reverse, p)
        assert p["shared_bytes"] <= limit, case
        assert p["threads"] % 32 == 0, case
        assert p["threads"] <= 512, case
        assert p["cluster_blocks"] in (1, 2, 4, 8), case
        assert p["threads_per_row"] * p["rows_per_block"] == p["threads"] * p["cluster_blocks"], case
        single = p["layout"] in ("staged", "strided")
        # Worst case: the row begins on the last element of a vector.
        vectors = classes if single else classes // vector if classes % vector == 0 else -(-(classes + vector - 1) // vector)
        assert p["vectors_per_thread"] * p["threads_per_row"] >= vectors, case
        assert (p["layout"] == "cluster") == (p["cluster_blocks"] > 1), case
        assert p["layout"] != "cluster" or limit == H100, case
        needed = classes * (student + (0 if entries else target * min(members, 2) + 4 * (members > 1)))
        if p["layout"] in ("tile", "block", "cluster"):
            assert p["shared_bytes"] * p["cluster_blocks"] >= needed, case
        if p["layout"] == "reread":  # only rows that really don't fit are read twice
            assert needed * 1.2 > (limit - 2112 - 8 * members - (classes // 8 + 2048) * bool(entries)) * (
                8 if limit == H100 and not entries else 1
            ), case


def test_fewest_bytes_where_a_row_stays_on_chip():
    p = kernel_plan(4096, 128_256, student=torch.bfloat16, device=None)
    assert p.layout == "cluster"
    assert p.bytes == 4096 * 128_256 * 6
    assert kernel_plan(4096, 262_144).bytes == 4096 * 262_144 * 20
    assert kernel_plan(4096, 1000, members=8, targets=torch.uint8).bytes == 4096 * 1000 * (8 + 8)


def test_the_printed_line():
    assert str(kernel_plan(8192, 1000)).startswith("tile: 128 threads a block, 32 a row, 8 vectors each; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows: expected at least 1; got 0"),
        ({"members": 0}, "members: expected at least 1; got 0"),
        ({"student": torch.uint8}, "student: expected a floating-point dtype; got torch.uint8"),
        ({"targets": torch.int64}, "targets: expected a floating-point dtype, or uint8; got torch.int64"),
        ({"divergence": "kl"}, "divergence: expected one of forward_kl, reverse_kl, jsd, tvd; got 'kl'"),
        ({"combiner": "mean"}, "combiner: expected one of prob, logit, log_prob; got 'mean'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kernel_plan(**{"rows": 10, "classes": 10} | arguments)
