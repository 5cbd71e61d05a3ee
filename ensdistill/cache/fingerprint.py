"""The sources of a cache, by content: one hash for each input, one for all, and two fingerprints compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash

from ensdistill.data.batches import hashes
from ensdistill.data.samples import fingerprint_of

_ABSENT = object()


def input_hashes(inputs: Any) -> np.ndarray:
    """xxh3_64 of each sample's content, seeded by its dtype and shape, or its columns.

    Parameters
    ----------
    inputs : batch of samples
        An array [N, ...] of any dtype without Python objects, or another container; see
        :mod:`ensdistill.data.batches`.

    Returns
    -------
    ndarray [N], little-endian uint64

    Raises
    ------
    TypeError
        An array of Python objects has no stable bytes; or no samples at all.

    Examples
    --------
    >>> a, b, c = input_hashes(np.array([[1, 2], [3, 4], [1, 2]], np.int16))
    >>> a == c, a == b, a == input_hashes(np.array([[1, 2]], np.uint16))[0]
    (np.True_, np.False_, np.False_)
    """
    return hashes(inputs)


def root_hash(values: np.ndarray) -> str:
    """xxh3_128 of the input hashes in row order: changes with any input, and with their order."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values, "<u8").data)


def made_from(content: Any, lengths: np.ndarray | None, uids: np.ndarray | None) -> dict[str, Any]:
    """``fingerprint.inputs`` of a cache, in row order.

    Parameters
    ----------
    content : ndarray [N], uint64, or lazy samples
        The hash of each input; or the inputs themselves, of which some are read.
    lengths : ndarray [N], optional
        How many positions of each sequence count.
    uids : ndarray [N], optional
        Unless a row is its uid.
    """
    more = {"lengths": lengths, "uids": uids}
    hashed = {name: root_hash(values) for name, values in more.items() if values is not None}
    if not isinstance(content, np.ndarray):
        return {**fingerprint_of(content), **hashed}
    return {"rows": len(content), "hash": root_hash(content), **hashed}


def as_json(name: str, value: Any) -> Any:
    """``value`` after a round trip through JSON, in which tuples become lists and NumPy numbers are refused.

    Raises
    ------
    TypeError
        ``value`` holds something that JSON does not have; the message names ``name``.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        expected = "plain JSON (dict, list, str, finite numbers, bool, None)"
        raise TypeError(f"{name}: expected {expected}; {error}") from error


def differences(found: Any, expected: Any, field: str = "") -> list[str]:
    """One line for each field in which two JSON values differ, with its path.

    For members with different digests the lines name the parts that differ, where both sides have ``parts``.
    Parts alone never make a difference, because older caches have none.

    Examples
    --------
    >>> found = {"codec": "uint8", "members": ["a", "b"]}
    >>> differences(found, {"codec": "uint8", "members": ["a", "c"], "rows": 3})
    ["members[1]: the cache has 'b', expected 'c'", 'rows: the cache has nothing, expected 3']
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        dot = f"{field}." if field else ""
        lines: list[str] = []
        if isinstance(expected.get("members"), dict) and isinstance(found.get("members"), dict):
            found, expected, lines = _by_part(found, expected, f"{dot}members.")
        keys = [*expected, *(key for key in found if key not in expected)]
        pairs = [(key, found.get(key, _ABSENT), expected.get(key, _ABSENT)) for key in keys]
        return lines + [line for key, one, other in pairs for line in differences(one, other, f"{dot}{key}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        both = enumerate(zip(found, expected, strict=True))
        return [line for i, pair in both for line in differences(*pair, f"{field}[{i}]")]
    if found == expected and found is not _ABSENT:
        return []
    return [f"{field}: the cache has {_show(found)}, expected {_show(expected)}"]


def _by_part(
    found: dict[str, Any], expected: dict[str, Any], dot: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Two fingerprints without parts and differing members, and lines about these members."""
    parts = [side.get("parts", {}) for side in (found, expected)]
    found, expected = (
        {key: value for key, value in side.items() if key != "parts"} for side in (found, expected)
    )
    members = [dict(found["members"]), dict(expected["members"])]
    lines = []
    for name in [name for name in members[1] if name in members[0] and members[0][name] != members[1][name]]:
        cached, now = (side.get(name) for side in parts)
        apart = _parts_apart(cached, now) if cached and now else []
        if isinstance(members[0][name], str) and isinstance(members[1][name], str):
            apart = apart or ["the model or its settings differ (no parts of it are noted)"]
            lines += [f"{dot}{name}: {line}" for line in apart]
            for side in members:
                del side[name]
    lines += _renamed_or_alone(members[0], members[1], dot)
    return {**found, "members": members[0]}, {**expected, "members": members[1]}, lines


def _renamed_or_alone(cached: dict[str, Any], now: dict[str, Any], dot: str) -> list[str]:
    """One line for each member under a name that one side lacks; both sides lose these members."""
    lines = []
    for name in [name for name in now if name not in cached]:
        same = next((old for old in cached if old not in now and cached[old] == now[name]), None)
        if same is not None:
            lines.append(f"{dot[:-1]}: {same!r} of the cache is called {name!r} now")
            del cached[same]
        else:
            lines.append(f"{dot}{name}: the cache has no such member")
        del now[name]
    for name in [name for name in cached if name not in now]:
        lines.append(f"{dot}{name}: is in the cache alone")
        del cached[name]
    return lines


def _parts_apart(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    lines = []
    for part in [part for part in {**expected, **found} if found.get(part) != expected.get(part)]:
        one, other = found.get(part), expected.get(part)
        if one is None or other is None:
            lines.append(f"{part} is {'not in the cache' if one is None else 'in the cache alone'}")
        elif len(one) == len(other) == 32:  # digests, which no reader can use
            lines.append(f"{part} differs" if part != "weights" else "weights differ")
        else:
            lines.append(f"{part}: the cache has {one!r}, expected {other!r}")
    return lines


def _show(value: Any) -> str:
    text = "nothing" if value is _ABSENT else repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
