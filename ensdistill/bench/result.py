"""The result file: its keys, writing it bit by bit, and resuming an interrupted one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from ensdistill.common.files import read_json, write_bytes

SCHEMA_VERSION = 2

_NUMBER = (int, float)
# {key: type}; a nested mapping is an object with at least these keys.
SCHEMA: dict[str, Any] = {
    "schema_version": int,
    "benchmark": str,
    "complete": bool,  # False while it runs, and for good where it was interrupted
    "machine": {
        "kind": str,
        "device": str,
        "cores": int,
        "threads": int,
        "versions": dict,
        "copy_gb_per_s": _NUMBER,
    },
    "source": {
        "version": str,
        "commit": (str, NoneType),
        "dirty": (bool, NoneType),
        "library_is_older": (bool, NoneType),
    },
    "settings": {"temperature": _NUMBER, "rounds": int, "seconds": _NUMBER, "data_bytes": int},
    "seconds": _NUMBER,  # that measuring took
    "notes": list,  # measurements that this machine can't make
    "left_out": list,  # {case, who (contender), why}
    "finished": list,  # labels of the cases that are measured
    "rows": list,
}
ROW: dict[str, Any] = {
    "case": str,
    "rows": int,
    "classes": int,
    "members": int,
    "student": str,
    "targets": str,
    "divergence": str,
    "labels": bool,
    "layout": str,
    "hidden": int,
    "small": bool,
    "family": str,  # the case's difference from a forward KL of logits [N, C]
    "mode": str,
    # fused, fused-avx2, fused-logits | eager, compile, autotune, liger, specification | quack | floor
    "implementation": str,
    "form": str,
    "ms": _NUMBER,
    "ms_quartiles": list,
    "rounds": int,
    "bytes": int,  # the fewest that have to be moved
    "gb_per_s": _NUMBER,
    "ratio_to_floor": (*_NUMBER, NoneType),
    "error": (dict, NoneType),  # against float64, checked before timing; None for floor and anchor
    "speedup": dict,  # of ours, over each of the others
    "extra_bytes": (int, NoneType),  # peak memory of a call beyond its inputs
    "graph": bool,  # timed as a CUDA graph
    "inputs": int,  # sets of inputs that a timed call goes through
}


def check_result(value: Any) -> dict[str, Any]:
    """The result, if it has the schema.

    Raises
    ------
    ValueError
        Naming the key that is missing or of another type.
    """
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        found = value.get("schema_version") if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"result: expected schema_version {SCHEMA_VERSION}; got {found}")
    _check("result", value, SCHEMA)
    for index, row in enumerate(value["rows"]):
        _check(f"rows[{index}]", row, ROW)
    return value


def _check(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object; got {value!r}")
    for key, kind in schema.items():
        if key not in value:
            raise ValueError(f"{name}.{key}: missing")
        if isinstance(kind, dict):
            _check(f"{name}.{key}", value[key], kind)
        elif not isinstance(value[key], kind) or (
            isinstance(value[key], bool) and kind is not bool and bool not in _tuple(kind)
        ):
            raise ValueError(
                f"{name}.{key}: expected {' or '.join(k.__name__ for k in _tuple(kind))}; got {value[key]!r}"
            )


def _tuple(kind: Any) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def write_result(path: Path, value: Mapping[str, Any]) -> None:
    """Write a result as JSON, one line for each entry of its top-level lists, so that a new result is a
    readable difference."""

    def lines(part: Any) -> str:
        if not isinstance(part, list) or not part:
            return json.dumps(part, allow_nan=False)
        return "[\n" + ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in part) + "\n ]"

    text = ",\n".join(f" {json.dumps(key)}: {lines(part)}" for key, part in value.items())
    write_bytes(path, f"{{\n{text}\n}}\n".encode())


class Writer:
    """Adds cases to a result file, which is complete JSON after each of them.

    Parameters
    ----------
    path : Path
    start : dict
        machine, source, settings, notes.
    resume : bool
        Go on with the contents of ``path``, if they are an unfinished result of the same machine, source and
        settings.
    """

    def __init__(self, path: Path, start: dict[str, Any], resume: bool = False) -> None:
        self.path = path
        empty = {"complete": False, "seconds": 0.0, "left_out": [], "finished": [], "rows": []}
        self.result: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "benchmark": "kernels",
            **start,
            **empty,
        }
        before = read_json(path) if resume else None
        if before is not None:
            _same(path, check_result(before), start)
            self.result = before | {"machine": start["machine"], "complete": False}

    def has(self, label: str) -> bool:
        return label in self.result["finished"]

    def add(
        self, label: str, rows: list[dict[str, Any]], left_out: list[dict[str, str]], seconds: float
    ) -> None:
        """Write one more case."""
        self.result["rows"] += rows
        self.result["left_out"] += left_out
        self.result["finished"].append(label)
        self.result["seconds"] = round(self.result["seconds"] + seconds, 1)
        write_result(self.path, check_result(self.result))

    def close(self) -> dict[str, Any]:
        """Mark the result as complete."""
        self.result["complete"] = True
        write_result(self.path, check_result(self.result))
        return self.result


def _same(path: Path, before: dict[str, Any], start: dict[str, Any]) -> None:
    for part in ("machine", "source", "settings"):
        for key in start[part]:
            # Measured anew each time.
            if key != "copy_gb_per_s" and before[part].get(key) != start[part][key]:
                found = f"{before[part].get(key)!r}, now it is {start[part][key]!r}"
                raise ValueError(
                    f"{path}: can't be resumed: its {part}.{key} is {found}; run without --resume to start "
                    "anew"
                )
