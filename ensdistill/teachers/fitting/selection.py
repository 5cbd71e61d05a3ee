"""Which members an ensemble needs: greedy selection with replacement on held-out predictions, within a budget where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import log_softmax, softmax

from ensdistill.common.random import random_generator
from ensdistill.teachers.fitting.calibration import COMBINERS, PRIOR_ROWS_PER_MEMBER, Combiner, check_prior_rows, log_mixture

Metric = Literal["nll", "accuracy", "brier"]
PRIOR_SAMPLE = 256  # rows on which the prior is evaluated where true classes suffice for the rest; it is a mean over rows
LEAST = 1e-300  # probability of a class that the chosen members rule out, where the prior asks for it
ROUNDING = 1e-12  # of a mean of float64 losses
Losses = Callable[[np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class Selection:
    """What a greedy selection chose.

    Parameters
    ----------
    counts : ndarray [K], int64
        How often each member was taken; members that weren't have 0.
    order : ndarray [R], int64
        The member of each round.
    losses : ndarray [R], float64
        The ensemble's loss after each round: mean NLL in nats, error rate or Brier score, by the metric.
    cost : float
        Of the members that were taken, each counted once; NaN without costs.
    """

    counts: np.ndarray
    order: np.ndarray
    losses: np.ndarray
    cost: float

    @property
    def weights(self) -> np.ndarray:
        """The counts, of sum one: float64 [K]."""
        return self.counts / self.counts.sum()


def greedy_selection(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    combiner: Combiner = "prob",
    metric: Metric = "nll",
    rounds: int = 50,
    bags: int = 1,
    share: float = 0.5,
    costs: Sequence[float] | np.ndarray | None = None,
    budget: float | None = None,
    seed: int = 0,
    prior_rows: float = PRIOR_ROWS_PER_MEMBER,
) -> Selection:
    """Take, again and again, the member that improves the ensemble most; keep the best of the ensembles on that way.

    Members may be taken several times, which is how they get weights (Caruana et al., 2004, "Ensemble Selection from Libraries of
    Models"). Deterministic: of equals the first is taken.

    Few rows can't tell who is needed: a member that is right about all of ten may be surely wrong about the eleventh. With
    ``metric="nll"`` the selection therefore has a prior, ``prior_rows`` further rows for each member, which the whole ensemble answers in
    equal parts. It fades as rows are added.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        Calibrated, and of rows that no member was trained on; the more rows, the less the selection fits their noise.
    labels : ndarray [N], int64
    combiner : {"prob", "logit", "log_prob"}
    metric : {"nll", "accuracy", "brier"}
        What is improved; between members of equal accuracy or Brier score the NLL decides.
    rounds : int
        How many members are taken at most, repeats included: weights are multiples of 1/rounds or coarser.
    bags : int
        More than one: as many selections, each among a random ``share`` of the members, are added up (Caruana et al., section 2.3).
        Less prone to fit noise where members are many and rows are few.
    share : float
        In (0, 1].
    costs : [K], optional
        What one prediction by each member costs, in any unit: milliseconds, bytes.
    budget : float, optional
        The most that the chosen members may cost together; one that is taken twice runs once. Of two ways, the greatest improvement
        and the greatest improvement for its cost, the one with the better end is kept.
    seed : int
        Of the bags.
    prior_rows : float
        Rows for each member that the prior for the whole ensemble is worth, with ``metric="nll"``; 0 trusts the held-out rows alone.

    Raises
    ------
    ValueError
        Shapes or values don't fit, nobody is affordable, or bags are asked for within a budget, which their sum would not keep.

    Examples
    --------
    >>> z = np.tile([[[3.0, 0], [3, 0]], [[0, 3.0], [0, 3]], [[2.0, 0], [0, 2]]], (1, 100, 1))
    >>> labels = np.tile([0, 1], 100)
    >>> greedy_selection(z, labels, rounds=4).counts.tolist()
    [0, 0, 1]
    >>> greedy_selection(z, labels, costs=[1, 1, 5], budget=2.5).counts.tolist()
    [1, 1, 0]
    """
    z, price = _check(logits, labels, combiner, metric, rounds, bags, share, costs, budget)
    check_prior_rows(prior_rows)
    prior = prior_rows * len(z) / len(labels) * np.exp(log_mixture(z, np.full(len(z), 1 / len(z)), combiner))
    votes, losses = _votes(z, labels, combiner, metric, prior)
    start = losses(_votes(np.zeros_like(z[:1]), labels, combiner, metric, prior)[0][0])[0]  # the loss of equal probabilities
    everybody = np.arange(len(z))
    if bags > 1:
        size = max(1, round(share * len(z)))
        drawn = [np.sort(random_generator("selection bag", seed, bag).permutation(everybody)[:size]) for bag in range(bags)]
        orders = [_walk(votes, losses, start, members, rounds, price)[0] for members in drawn]
        order = np.concatenate(orders)
    else:
        within = np.inf if budget is None else budget
        ways = [
            _walk(votes, losses, start, everybody, rounds, price, within, way) for way in ([False] if budget is None else [False, True])
        ]
        order = min(ways, key=lambda way: way[1][-1])[0]
    plain, loss = _votes(z, labels, combiner, metric, np.zeros_like(prior))
    after = np.array([loss(plain[order[: i + 1]].mean(0))[0] for i in range(len(order))])
    counts = np.bincount(order, minlength=len(z))
    return Selection(counts, order, after, float(price[counts > 0].sum()) if costs is not None else float("nan"))


def _votes(z: np.ndarray, labels: np.ndarray, combiner: Combiner, metric: Metric, prior: np.ndarray) -> tuple[np.ndarray, Losses]:
    """What members add to the sum [K, ...], and the loss (with the NLL, for equals) of its mean.

    ``prior`` [N, C] is how much the log-probability of each class counts beside that of the label.
    """
    rows = np.arange(len(labels))
    if combiner == "prob" and metric == "nll":  # the mean probability of the true class is all it needs, but for the prior
        looked_at = rows[:: -(-len(rows) // PRIOR_SAMPLE)] if prior.any() else rows[:0]
        p, further = softmax(z, axis=-1), prior[looked_at].ravel() / max(1, len(looked_at))
        true = np.concatenate([p[:, rows, labels], p[:, looked_at].reshape(len(z), -1)], 1)

        def nll(mean: np.ndarray) -> tuple[float, float]:
            with np.errstate(divide="ignore"):
                value = float(-np.log(mean[: len(rows)]).mean() - further @ np.log(np.maximum(mean[len(rows) :], LEAST)))
            return value, value

        return true, nll
    votes = softmax(z, axis=-1) if combiner == "prob" else np.maximum(log_softmax(z, axis=-1), -1e30)  # 0 · inf is no number
    onehot = np.eye(z.shape[2])[labels] if metric == "brier" else None

    def losses(mean: np.ndarray) -> tuple[float, float]:
        p = mean if combiner == "prob" else softmax(mean, axis=-1)
        with np.errstate(divide="ignore"):
            tie = float(-np.log(p[rows, labels]).mean())
        if onehot is not None:
            return float(((p - onehot) ** 2).sum(1).mean()), tie
        if metric == "accuracy":
            return float((p.argmax(1) != labels).mean()), tie
        value = tie - float((prior * np.log(np.maximum(p, LEAST))).sum(1).mean())
        return value, value

    return votes, losses


def _walk(
    votes: np.ndarray,
    losses: Losses,
    nothing: float,
    members: np.ndarray,
    rounds: int,
    price: np.ndarray,
    budget: float = np.inf,
    by_cost: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The members taken up to the best round, and the loss after each."""
    total, order, after = np.zeros(votes.shape[1:]), list[int](), list[tuple[float, float]]()
    for count in range(1, rounds + 1):
        spent = price[list(set(order))].sum()
        affordable = [k for k in members if k in order or spent + price[k] <= budget * (1 + 1e-12)]
        if not affordable:
            break
        found = [losses((total + votes[k]) / count) for k in affordable]
        best = min(range(len(found)), key=found.__getitem__)
        gains = (after[-1][0] if after else nothing) - np.array([loss for loss, _ in found])
        if by_cost and gains.max() > 0:  # who runs already costs next to nothing
            extra = np.array([0.0 if k in order else price[k] for k in affordable])
            best = int(np.argmax(gains / np.maximum(extra, 1e-9 * price.max())))
        order.append(int(affordable[best]))
        after.append(found[best])
        total = total + votes[order[-1]]
    best_loss, best_tie = min(after)
    # The first that is as good but for rounding: members taken in turn, (a, b, a, b), are (a, b).
    end = 1 + next(i for i, (loss, tie) in enumerate(after) if loss <= best_loss + ROUNDING and tie <= best_tie + ROUNDING)
    return np.array(order[:end], np.int64), np.array([loss for loss, _ in after[:end]])


def _check(
    logits: np.ndarray,
    labels: np.ndarray,
    combiner: str,
    metric: str,
    rounds: int,
    bags: int,
    share: float,
    costs: Sequence[float] | np.ndarray | None,
    budget: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    z = np.asarray(logits, np.float64)
    if z.ndim != 3 or len(labels) == 0 or z.shape[1] != len(labels) or z.size == 0:
        raise ValueError(f"logits: expected [K, {len(labels)}, C] for {len(labels)} labels; got {list(z.shape)}")
    if combiner not in COMBINERS:
        raise ValueError(f"combiner: expected one of {COMBINERS}; got {combiner!r}")
    if metric not in ("nll", "accuracy", "brier"):
        raise ValueError(f"metric: expected nll, accuracy or brier; got {metric!r}")
    for name, value in (("rounds", rounds), ("bags", bags)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1; got {value}")
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1]; got {share}")
    price = np.ones(len(z)) if costs is None else np.asarray(costs, np.float64)
    if price.shape != (len(z),) or not np.isfinite(price).all() or (price < 0).any():
        raise ValueError(f"costs: expected {len(z)} numbers of at least 0, one for each member; got {price.tolist()}")
    if budget is not None:
        if costs is None:
            raise ValueError("budget: expected costs beside it, one for each member; got none")
        if bags > 1:
            raise ValueError(f"bags: expected 1 within a budget, which the sum of several selections would not keep; got {bags}")
        if not budget >= price.min():
            raise ValueError(f"budget: expected at least {price.min():g}, the cost of the cheapest member; got {budget}")
    return z, price
