"""Bytes, hours and machines for a corpus of 100 billion tokens, computed from the measured rates."""

from __future__ import annotations

from typing import Any

TOKENS = 100e9
HOURS = 7 * 24.0  # in which the machines are to be done


def on_paper(caching: list[dict[str, Any]], training: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each measured vocabulary and codec: terabytes, hours of one such machine, machines for a week.

    Examples
    --------
    >>> row = {"vocabulary": 9, "codec": "topk-5", "tokens_per_s": 1e6, "bytes_per_token": 50}
    >>> found = on_paper([row], [])[0]
    >>> found["terabytes"], round(found["hours"], 1), found["machines_for_a_week"]
    (5.0, 27.8, 1)
    """
    found = []
    for row in caching:
        hours = TOKENS / row["tokens_per_s"] / 3600
        found.append(
            {
                "what": "caching",
                "vocabulary": row["vocabulary"],
                "codec": row["codec"],
                "terabytes": TOKENS * row["bytes_per_token"] / 1e12,
                "hours": hours,
                "machines_for_a_week": int(-(-hours // HOURS)),
            }
        )
    for row in training:
        if "tokens_per_s" in row:
            hours = TOKENS / row["tokens_per_s"] / 3600
            found.append(
                {
                    "what": f"one epoch, {row['way']}",
                    "hours": hours,
                    "machines_for_a_week": int(-(-hours // HOURS)),
                }
            )
    return found
