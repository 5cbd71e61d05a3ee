"""Fitted scikit-learn estimators as .skops archives: their content without what changes from process to process, and safe loading."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.fingerprint import digest

# What fitted scikit-learn estimators are made of beyond what skops itself trusts.
TRUSTED_SKLEARN = ("sklearn.tree._tree.Tree",)


def skops_content(blob: bytes) -> tuple[str, int, int]:
    """Digest, count and bytes of what a .skops archive holds, without the memory addresses that its schema and file names carry."""
    archive = zipfile.ZipFile(io.BytesIO(blob))
    numbers = size = 0

    def content(node: Any) -> Any:
        nonlocal numbers, size
        if isinstance(node, list):
            return [content(item) for item in node]
        if not isinstance(node, dict):
            return node
        plain = {key: content(value) for key, value in node.items() if key not in ("__id__", "file")}
        if "file" in node:
            data = archive.read(node["file"])
            if node["file"].endswith(".npy"):
                array = np.load(io.BytesIO(data), allow_pickle=False)
                # Field by field: a tree's nodes have padding bytes, which hold whatever memory held.
                fields = [array[name] for name in array.dtype.names] if array.dtype.names else [array]
                numbers, size = numbers + sum(f.size for f in fields), size + array.nbytes
                plain["file"] = fields
            else:
                plain["file"] = data
        return plain

    return digest(content(json.loads(archive.read("schema.json")))), numbers, size


def load_skops(blob: bytes, trusted: Sequence[str], folder: Path) -> Any:
    """The estimator of an archive, built of trusted types only; ``folder`` is for the message."""
    import skops.io

    allowed = {*TRUSTED_SKLEARN, *trusted}
    needed = set(skops.io.get_untrusted_types(data=blob))
    if needed - allowed:
        unknown = sorted(needed - allowed)
        raise ValueError(f"{folder}: holds types that are not trusted: {unknown}. If you know them, pass trusted={unknown}")
    return skops.io.loads(blob, trusted=sorted(needed))
