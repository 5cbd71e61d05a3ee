"""How much of the members' disagreement a student kept: whether it tells rows on which they differ, and rows
out of distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.report.ranks import auroc, rank_correlation

KINDS = ("ensemble", "direct", "student")


@dataclass(frozen=True, eq=False)
class Spread:
    """A model's uncertainties of one seed, in nats.

    Parameters
    ----------
    total, strange_total : ndarray [N], [M]
        The entropy of the prediction, on the test rows and on rows out of distribution.
    knowledge, strange_knowledge : ndarray [N], [M], optional
        The mutual information of class and member: of the ensemble, or of what a student kept of it. None of
        a model that predicts one distribution.
    """

    total: np.ndarray
    strange_total: np.ndarray
    knowledge: np.ndarray | None = None
    strange_knowledge: np.ndarray | None = None

    @property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The knowledge uncertainties where the model has them, else the total ones."""
        if self.knowledge is None or self.strange_knowledge is None:
            return self.total, self.strange_total
        return self.knowledge, self.strange_knowledge


def judge_spread(
    of_kinds: Mapping[str, Sequence[Spread]], nll: Mapping[str, float], rows: str
) -> dict[str, Any]:
    """The entry ``spread`` of a student's block (``docs/report-json.md`` has its schema).

    Parameters
    ----------
    of_kinds : mapping of str to list of Spread
        By kind of model, one for each seed. Without those of the student the entry is empty.
    nll : mapping of str to float
        Of the kinds, on the test rows.
    rows : str
        What the rows out of distribution are.
    """
    if not of_kinds.get("student"):
        return {}
    found: dict[str, Any] = {"rows": rows}
    ensemble = of_kinds.get("ensemble", ())
    for kind in KINDS:
        seeds = of_kinds.get(kind, ())
        if not seeds:
            continue
        total = [auroc(one.total, one.strange_total) for one in seeds]
        own = [auroc(*one.best) for one in seeds]
        found[kind] = {
            "keeps_members": all(one.knowledge is not None for one in seeds),
            "ood_auroc": {"mean": float(np.mean(own)), "per_seed": own},
            "ood_auroc_total": {"mean": float(np.mean(total)), "per_seed": total},
            "nll": nll[kind],
        }
        if ensemble:
            pairs = zip(seeds, ensemble, strict=True)
            own = [rank_correlation(one.best[0], other.best[0]) for one, other in pairs]
            found[kind]["rank_with_members"] = {"mean": float(np.mean(own)), "per_seed": own}
    return found
