"""Which cases are run."""

from __future__ import annotations

from collections.abc import Sequence

from ensdistill.bench.cases import MULTILABEL, Case, make_case

CLASSES = (10, 100, 1000, 8192, 32000, 50257, 128256, 151936)
MEMBERS = (1, 4, 8)
TARGETS = ("float32", "uint8", "bfloat16", "float16")
DIVERGENCES = ("reverse_kl", "jsd", "tvd")
VOCABULARY = 128256
SMALL = 128  # rows of a small batch, where most time goes into starting the work
# Of bfloat16 and float16 not every number of members: they differ from float32 in their loads only, and each
# case takes ten seconds.
HALF_MEMBERS = {"bfloat16": (1, 4), "float16": (1,)}


def full(data_bytes: int, gpu: bool) -> list[Case]:
    """Everything."""
    members = {t: MEMBERS if gpu else HALF_MEMBERS.get(t, MEMBERS) for t in TARGETS}
    dense = [case for t in TARGETS for case in grid(data_bytes, CLASSES, members[t], [t])]
    if gpu:  # where students are bfloat16, and float32 ones are the exception
        dense += [make_case(data_bytes, c, k, "uint8", "bfloat16") for k in MEMBERS for c in CLASSES]
    return dense + family(data_bytes, gpu)


def grid(
    data_bytes: int, classes: Sequence[int], members: Sequence[int], targets: Sequence[str]
) -> list[Case]:
    """Forward KL of dense targets, all combinations; codes meet a float32 student."""
    return [make_case(data_bytes, c, k, t) for t in targets for k in members for c in classes]


def family(data_bytes: int, gpu: bool) -> list[Case]:
    """Divergences, top-k targets, hard labels, feature maps, small batches, by-products, and a last layer
    fused with the loss."""
    return [
        *(
            make_case(data_bytes, c, 1, "float32", divergence=d)
            for d in DIVERGENCES
            for c in (1000, 32000, VOCABULARY)
        ),
        *(make_case(data_bytes, c, 1, "topk") for c in (1000, 32000, VOCABULARY)),
        *(make_case(data_bytes, c, 1, "float32", labels=True) for c in (1000, 32000)),
        *(make_case(data_bytes, c, 1, "float32", layout="map") for c in (21, 150)),  # Pascal VOC's, ADE20K's
        *(Case(SMALL, c, 4, "float32", "float32", small=True) for c in (10, 1000)),
        *by_products(data_bytes),
        *multilabel(data_bytes),
        *linear(gpu),
    ]


def multilabel(data_bytes: int) -> list[Case]:
    """C sigmoids in place of a softmax."""
    shapes = [(20, 4, "float32"), *((1000, k, t) for k, t in ((1, "float32"), (4, "float32"), (4, "uint8")))]
    return [make_case(data_bytes, c, k, t, divergence=MULTILABEL) for c, k, t in shapes]


def by_products(data_bytes: int) -> list[Case]:
    """A student's and an ensemble's entropies beside the loss."""
    return [make_case(data_bytes, 1000, 4, "float32", statistics=True)]


def linear(gpu: bool) -> list[Case]:
    """The last layer of a language model with the loss behind it: dense targets, top-k targets, and JSD where
    Liger can run."""
    rows, hidden, dtype = (4096, 2048, "bfloat16") if gpu else (512, 128, "float32")
    dense = ("forward_kl", "jsd") if gpu else ("forward_kl",)
    return [
        *(Case(rows, VOCABULARY, 1, dtype, dtype, divergence=d, hidden=hidden) for d in dense),
        Case(rows, VOCABULARY, 1, dtype, "topk", hidden=hidden),
    ]


def quick(data_bytes: int, gpu: bool = False) -> list[Case]:
    """A few of each, in under two minutes on two quiet cores; on a GPU in about four, the telling ones first:
    peers compile long."""
    if not gpu:
        return [
            *grid(data_bytes, (10, 1000, 50257), (1, 4), ["float32"]),
            make_case(data_bytes, 50257, 4, "uint8"),
            make_case(data_bytes, 32000, 1, "float32", divergence="jsd"),
            make_case(data_bytes, 32000, 1, "topk"),
        ]
    shapes = [
        (1000, 1, "float32"),
        (VOCABULARY, 1, "bfloat16"),
        (10, 1, "float32"),
        (32000, 4, "bfloat16"),
        (1000, 8, "uint8"),
    ]
    shapes += [(VOCABULARY, 4, "float32"), (100, 1, "bfloat16"), (8192, 1, "float32"), (50257, 1, "bfloat16")]
    return [
        *(make_case(data_bytes, c, k, t) for c, k, t in shapes),
        make_case(data_bytes, VOCABULARY, 8, "uint8", "bfloat16"),
        make_case(data_bytes, VOCABULARY, 1, "bfloat16", divergence="jsd"),
        make_case(data_bytes, 32000, 1, "topk"),
        make_case(data_bytes, 21, 1, "float32", layout="map"),
        Case(SMALL, 1000, 4, "float32", "float32", small=True),
        *linear(gpu)[:1],
        *by_products(data_bytes),
    ]
