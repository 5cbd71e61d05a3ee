"""Teachers for the cache's tests: real logits of scikit-learn's digits, from NumPy alone, and the same bits
every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ensdistill.cache.files.checked import write_checked
from ensdistill.data import Rows


@dataclass(frozen=True)
class Teachers:
    """Members that look their logits up by the sample's number, which is hidden in the input's first
    column."""

    logits: np.ndarray  # float32 [K, N, C]
    names: tuple[str, ...] = ("a", "b", "c")
    classes: tuple[str, ...] = tuple("0123456789")
    weights: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.3, 0.2]))
    combiner: str = "prob"
    version: str = "1"

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        return self.logits[:, inputs[:, 0].astype(int)]

    def fingerprint(self) -> dict[str, Any]:
        members = [{"name": name, "weights": self.version} for name in self.names]
        return {
            "members": members,
            "weights": self.weights.tolist(),
            "combiner": self.combiner,
            "calibration": None,
        }

    def with_logit(self, member: int, row: int, class_: int | slice, value: float) -> Teachers:
        logits = self.logits.copy()
        logits[member, row, class_] = value
        return replace(self, logits=logits)


@cache
def digits(n: int = 230) -> tuple[Teachers, Rows]:
    """Three logistic regressions and n rows, whose uids are a permutation."""
    data, labels = load_digits(return_X_y=True)
    members = [
        LogisticRegression(C=c, max_iter=60).fit(data[:300] / 16, labels[:300]) for c in (0.01, 1.0, 100.0)
    ]
    pixels = data[300 : 300 + n]
    logits = np.stack([member.decision_function(pixels / 16) for member in members]).astype(np.float32)
    inputs = np.concatenate([np.arange(n)[:, None], pixels], axis=1).astype(np.float32)
    return Teachers(logits), Rows(
        inputs, np.random.default_rng(0).permutation(n), labels[300 : 300 + n].astype(np.int64)
    )


def in_uid_order(teachers: Teachers, rows: Rows) -> np.ndarray:
    return teachers.logits[:, np.argsort(rows.uids)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but its locks."""
    return {
        file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.startswith(".")
    }


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest in place, and give it a right checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    change(manifest)
    write_checked(folder / "manifest.json", manifest)
