"""The choice of a plan for the CUDA kernels: plain arithmetic, so it is tested everywhere."""

from itertools import product

import pytest
import torch

from ensdistill.loss import _native
from ensdistill.loss.arguments import make_problem
from ensdistill.loss.explain import kernel_plan
from ensdistill.loss.settings import DIVERGENCES, LossSettings
from ensdistill.loss.targets import Counts, TopK

H100, A10 = 232_448, 101_376
CLASSES = (1, 2, 10, 32, 33, 1000, 1024, 1025, 4096, 4097, 14_000, 50_257, 128_256, 152_064, 262_144)


def plan(
    classes: int,
    members: int,
    student: int,
    target: int,
    *,
    flat: bool = True,
    entries: int = 0,
    limit: int = H100,
    reverse: bool = False,
):
    return _native.kernel_plan(
        rows=1000,
        classes=classes,
        members=members,
        student_bytes=student,
        target_bytes=0 if entries else target,
        geometric=False,
        doubles=False,
        divergence="reverse_kl" if reverse else "forward_kl",
        unit_classes=True,
        flat=flat,
        entries=entries,
        shared_limit=limit,
        clusters=limit == H100,
    )


@pytest.mark.parametrize("limit", [H100, A10])
@pytest.mark.parametrize(("student", "target"), [(4, 4), (4, 1), (2, 2), (2, 1), (2, 4)])
def test_a_plan_covers_the_row_and_fits(student, target, limit):
    vector = 16 // student
    for classes, members, flat, entries, reverse in product(
        CLASSES, (1, 2, 8, 32), (True, False), (0, 64), (False, True)
    ):
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
        vectors = (
            classes
            if single
            else classes // vector
            if classes % vector == 0
            else -(-(classes + vector - 1) // vector)
        )
        assert p["vectors_per_thread"] * p["threads_per_row"] >= vectors, case
        assert (p["layout"] == "cluster") == (p["cluster_blocks"] > 1), case
        assert p["layout"] != "cluster" or limit == H100, case
        # Two members in turn and their sum, or all members at once where they are few.
        in_turn = 0 if entries else target * min(members, 2) + 4 * (members > 1)
        at_once = 0 if entries else target * members
        light = not entries and at_once <= in_turn
        assert p["members_at_once"] == (p["layout"] in ("tile", "block", "cluster") and light) or (
            p["layout"] in ("block", "cluster") and members == 8
        ), case
        needed = classes * (student + min(in_turn, at_once))
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
        ({"rows": 0}, "rows: expected 1 to 9223372036854775807, what int64 holds; got 0"),
        ({"members": 0}, "members: expected 1 to 1024, what CUDA kernels take; got 0"),
        ({"members": 1025}, "members: expected 1 to 1024, what CUDA kernels take; got 1025"),
        ({"classes": 2**40}, "classes: expected 1 to 1073741824, what CUDA kernels take; got 1099511627776"),
        ({"entries": 2**40}, "entries: expected 0 to 16777216, 0 being dense targets; got 1099511627776"),
        (
            {"rows": 640, "classes": 5, "members": 1000, "classes_first": True},
            "members: expected fewer members on this GPU; got 1000: its plan needs 1,024,000 bytes of "
            "shared memory, and a block can "
            "have 232,448",
        ),
        (
            {"classes": 1000, "entries": 8200},
            "entries: expected fewer entries for each row on this GPU; got 8200: its plan needs 264,400 "
            "bytes of shared memory, and a "
            "block can have 232,448",
        ),
        (
            {"classes": 2**24, "entries": 64},
            "classes: expected fewer classes beside sparse targets on this GPU; got 16777216: its plan "
            "needs 2,101,328 bytes of shared "
            "memory, and a block can have 232,448",
        ),
        ({"student": torch.uint8}, "student: expected a floating-point dtype; got torch.uint8"),
        ({"targets": torch.int64}, "targets: expected a floating-point dtype, or uint8; got torch.int64"),
        ({"divergence": "kl"}, "divergence: expected one of forward_kl, reverse_kl, jsd, tvd; got 'kl'"),
        ({"combiner": "mean"}, "combiner: expected one of prob, logit, log_prob; got 'mean'"),
    ],
)
def test_errors(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # an H100 is then planned for
    with pytest.raises(ValueError, match=f"^{message}$"):
        kernel_plan(**{"rows": 10, "classes": 10} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 10.5}, "rows: expected an int; got 10.5"),
        ({"classes": "a"}, "classes: expected an int; got 'a'"),
        ({"members": True}, "members: expected an int; got True"),
        ({"entries": None}, "entries: expected an int; got None"),
        ({"student": "bf16"}, "student: expected a torch.dtype; got 'bf16'"),
        ({"targets": 8}, "targets: expected a torch.dtype; got 8"),
        ({"classes_first": 1}, "classes_first: expected a bool; got 1"),
    ],
)
def test_types(arguments, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        kernel_plan(**{"rows": 10, "classes": 10} | arguments)


def test_the_largest_that_can_be_launched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_plan(10, 1000, entries=8190).shared_bytes <= H100
    assert kernel_plan(10, 1000, members=1024, targets=torch.uint8).layout == "tile"
    assert kernel_plan(10, 10, entries=64).layout  # more entries than classes: padding


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("shape", "targets", "settings", "message"),
    [
        ((2, 5), torch.zeros(1025, 2, 5), {}, "targets: expected at most 1024 members on a GPU; got 1025"),
        (
            (2, 5, 3),
            torch.zeros(300, 2, 5, 3),
            {"class_dim": 1},
            "targets: expected fewer members on this GPU; got 300: its plan needs",
        ),
        (
            (1, 9000),
            TopK(torch.arange(9000)[None], torch.full((1, 9000), -9.1), torch.zeros(1)),
            {},
            "targets.ids: expected fewer entries for each row on this GPU; got 9000: its plan needs",
        ),
        (
            (1, 9000),
            Counts(torch.arange(9000)[None], torch.ones(1, 9000)),
            {},
            "targets.ids: expected fewer entries for each row on this GPU",
        ),
        (
            (1, 2**22),
            Counts(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)),
            {},
            "student_logits: expected fewer classes beside sparse targets on this GPU; got 4194304: its "
            "plan needs",
        ),
        ((2, 5), torch.zeros(1024, 2, 5), {}, None),
        ((1, 9000), TopK(torch.arange(8190)[None], torch.full((1, 8190), -9.1), torch.zeros(1)), {}, None),
        ((2, 5), torch.zeros(1025, 2, 5), {"impl": "reference"}, None),
    ],
)
def test_a_loss_on_a_gpu_refuses_sizes_that_cannot_be_launched(
    shape, targets, settings, message, monkeypatch
):
    """Before native code is called. Here there is no GPU: the function that checks devices is replaced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in ("arguments", "target_arguments"):
        monkeypatch.setattr(f"ensdistill.loss.{module}.check_device", lambda *_: None)
    defaults = {"weights": None, "class_weights": None, "sample_weights": None, "statistics": False}
    class_dim = settings.get("class_dim", len(shape) - 1)

    def call(device):
        others = defaults | {k: v for k, v in settings.items() if k != "class_dim"}
        return make_problem(shape, class_dim, torch.float32, device, targets, None, LossSettings(), **others)

    assert call(torch.device("cpu")).lead
    if message is None:
        assert call(CUDA).lead
    else:
        with pytest.raises(ValueError, match=f"^{message}"):
            call(CUDA)


@pytest.mark.parametrize(
    ("classes_first", "doubles", "divergence"), [*product((False, True), (False, True), DIVERGENCES)]
)
def test_check_launch_makes_no_plan_where_everything_fits(classes_first, doubles, divergence):
    """check_launch's short cut, on the GPU with the least shared memory."""
    for classes, (members, entries), target in product(
        (*CLASSES[:-1], 2**18), ((64, 0), (1, 1000)), (1, 2, 4, 8)
    ):
        found = _native.kernel_plan(
            rows=1,
            classes=classes,
            members=members,
            student_bytes=8 if doubles else 4,
            target_bytes=0 if entries else target,
            geometric=False,
            doubles=doubles,
            divergence=divergence,
            unit_classes=not classes_first,
            flat=not classes_first,
            entries=entries,
            shared_limit=A10,
            clusters=False,
        )
        assert found["shared_bytes"] <= A10, (classes, members, entries, target)
