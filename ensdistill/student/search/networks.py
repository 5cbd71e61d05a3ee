"""Families of networks for arrays, tables, images and texts."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from ensdistill.models import CNN, MLP, BagOfNgrams, TabularMLP, TextTransformer
from ensdistill.student.search.families import About, Candidate

WIDTHS = ((16,), (32,), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512))
# Of numbers: `power_scaler` of `ensdistill.data.preprocess` as a setting. Powers can't be fitted in float16.
STANDARD = {"class_path": "sklearn.preprocessing.StandardScaler"}
POWERS = {
    "class_path": "sklearn.pipeline.Pipeline",
    "init_args": {
        "steps": [
            ["clip", {"class_path": "sklearn.preprocessing.MinMaxScaler", "init_args": {"clip": True}}],
            ["standard", STANDARD],
            ["powers", {"class_path": "sklearn.preprocessing.PowerTransformer"}],
        ]
    },
}
CODES = {"class_path": "ensdistill.data.preprocess.TableDefaults", "init_args": {"codes": 8}}
WORDS = {
    "class_path": "ensdistill.data.preprocess.HashedNgrams",
    "init_args": {"words": 1, "characters": None, "buckets": 8192, "length": 64},
}
NGRAMS = {
    "class_path": "ensdistill.data.preprocess.HashedNgrams",
    "init_args": {"words": 1, "characters": [3, 4], "length": 200},
}


def _named(hidden: tuple[int, ...]) -> str:
    return "-".join(map(str, hidden))


class Mlp:
    """Fully connected layers on scaled numbers, on a table's default preprocess, or on pixels."""

    name = "mlp"

    def refuses(self, about: About) -> str:
        if about.gaps:
            return "it takes arrays without gaps; got NaN: fill them, or take the family boosted"
        if about.kind in ("table", "images", "array", "tensor"):
            return ""
        return f"it takes arrays, tables and images; got {about.kind}"

    def candidates(self, about: About) -> list[Candidate]:
        preprocess: Any = "auto"
        if about.kind in ("array", "tensor") and len(about.shape) == 1:
            preprocess = STANDARD if about.dtype.endswith("float16") else POWERS
        return [
            Candidate(
                self.name,
                _named(hidden),
                partial(MLP, hidden=list(hidden), activation="silu"),
                preprocess=preprocess,
                rate=0.02 if max(hidden) <= 64 else 0.01,
            )
            for hidden in WIDTHS
        ]


class Embeddings:
    """Fully connected layers on embeddings of a table's numbers and categories."""

    name = "embeddings"

    def refuses(self, about: About) -> str:
        if about.kind != "table":
            return f"it takes tables; got {about.kind}"
        if find_spec("rtdl_num_embeddings") is None:
            return "it needs rtdl_num_embeddings: pip install 'ensdistill[table]'"
        return ""

    def candidates(self, about: About) -> list[Candidate]:
        return [
            Candidate(
                self.name,
                f"{_named(hidden)}x{width}",
                partial(TabularMLP, hidden=list(hidden), activation="silu", numbers="piecewise", width=width),
                preprocess=CODES,
                rate=0.005,
            )
            for hidden, width in (((32,), 4), ((64, 64), 6), ((128, 128), 8), ((256, 256), 12))
        ]


class Cnn:
    """Convolutions on images."""

    name = "cnn"

    def refuses(self, about: About) -> str:
        if not about.image:
            return f"it takes images; got {about.kind} of shape {list(about.shape)}"
        # Each of its two stages halves an image.
        return "" if min((*about.shape[1:], 64)) >= 4 else f"images of 4x4 pixels at least; got {about.shape}"

    def candidates(self, about: About) -> list[Candidate]:
        stages = [(4, 8), (8, 16), (16, 32), (32, 64)]
        return [
            Candidate(
                self.name,
                _named(channels),
                partial(CNN, channels=list(channels), activation="silu", pooling="average"),
                rate=0.02,
            )
            for channels in stages
        ]


class Ngrams:
    """Sums of the embeddings of a text's n-grams."""

    name = "ngrams"

    def refuses(self, about: About) -> str:
        return "" if about.kind == "text" else f"it takes texts; got {about.kind}"

    def candidates(self, about: About) -> list[Candidate]:
        return [
            Candidate(
                self.name,
                f"{buckets}x{width}",
                partial(BagOfNgrams, width=width, dropout=0.2),  # docs/texts.md has the comparison
                preprocess={**NGRAMS, "init_args": {**NGRAMS["init_args"], "buckets": buckets}},  # type: ignore[dict-item]
                rate=0.001,
            )
            for buckets, width in ((1024, 16), (2048, 32), (4096, 48), (16384, 64), (65536, 64))
        ]


class Transformer:
    """A small transformer encoder on a text's words."""

    name = "transformer"

    def refuses(self, about: About) -> str:
        return "" if about.kind == "text" else f"it takes texts; got {about.kind}"

    def candidates(self, about: About) -> list[Candidate]:
        return [
            Candidate(
                self.name,
                f"{width}x{layers}",
                partial(TextTransformer, width=width, heads=4, layers=layers),
                preprocess=WORDS,
                rate=0.001,
            )
            for width, layers in ((32, 1), (64, 2))
        ]
