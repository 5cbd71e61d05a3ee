"""Greedy selection of members, with replacement, on held-out predictions and within a budget, if any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import log_softmax, softmax

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.common.random import random_generator
from ensdistill.teachers.fitting.calibration import (
    PRIOR_ERRORS,
    PRIOR_ROWS_PER_MEMBER,
    cautious_temperature,
    check_prior_rows,
    log_mixture,
)

Metric = Literal["nll", "accuracy", "brier"]
PRIOR_SAMPLE = 256  # rows on which the prior is evaluated if the rest needs true classes only
LEAST = 1e-300  # probability of a class that the chosen members rule out, in the prior
ROUNDING = 1e-12  # of a mean of float64 losses
Losses = Callable[[np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class Selection:
    """The result of a greedy selection.

    Parameters
    ----------
    counts : ndarray [K], int64
        How often each member was taken; 0 for the others.
    order : ndarray [R], int64
        The member of each round.
    losses : ndarray [R], float64
        The ensemble's loss after each round: mean NLL in nats, error rate or Brier score, by the metric.
    cost : float
        Of the chosen members, each counted once; NaN without costs.
    temperature : float
        At least 1: the temperature that guards the chosen ensemble against few rows. ``losses`` are without
        it.
    """

    counts: np.ndarray
    order: np.ndarray
    losses: np.ndarray
    cost: float
    temperature: float = 1.0

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
    """Take, again and again, the member that improves the ensemble most; keep the best of these ensembles.

    Members may be taken several times, which gives them weights (Caruana et al., 2004, "Ensemble Selection
    from Libraries of Models"). Deterministic: among equals the first is taken.

    Few rows are no evidence against a member: the others may be right about all of ten rows and surely wrong
    about the eleventh. So there are two guards, which fade as rows are added. With ``metric="nll"`` a prior
    of ``prior_rows`` further rows for each member is answered by the whole ensemble in equal parts. And
    :func:`ensdistill.teachers.fitting.calibration.cautious_temperature` softens the logits before the choice,
    and the chosen ensemble afterwards: each further row that is wrong would otherwise cost as much as the
    saturated logits' margin.

    Parameters
    ----------
    logits : ndarray [K, N, C]
        Calibrated, and of rows that no member was trained on; the more rows, the less the selection fits
        their noise.
    labels : ndarray [N], int64
    combiner : {"prob", "logit", "log_prob"}
    metric : {"nll", "accuracy", "brier"}
        The loss to improve; between members of equal accuracy or Brier score the NLL decides.
    rounds : int
        Number of members taken at most, repeats included: weights are multiples of 1/rounds or coarser.
    bags : int
        More than one: as many selections, each among a random ``share`` of the members, are added up (Caruana
        et al., section 2.3). Less prone to fit noise if members are many and rows are few.
    share : float
        In (0, 1].
    costs : [K], optional
        Cost of one prediction by each member, in any unit: milliseconds, bytes.
    budget : float, optional
        The most that the chosen members may cost together; one that is taken twice runs once. Of two
        searches, by the greatest improvement and by the greatest improvement for its cost, the one with the
        better end is kept.
    seed : int
        Of the bags.
    prior_rows : float
        Rows for each member that the prior for the whole ensemble is worth; 0 trusts the held-out rows alone,
        without any guard.

    Raises
    ------
    ValueError
        Shapes or values don't fit, no member is affordable, or there are bags within a budget, which their
        sum would exceed.

    Examples
    --------
    >>> z = np.tile([[[3.0, 0], [3, 0]], [[0, 3.0], [0, 3]], [[2.0, 0], [0, 2]]], (1, 100, 1))
    >>> labels = np.tile([0, 1], 100)
    >>> greedy_selection(z, labels, rounds=4).counts.tolist()
    [0, 0, 1]
    >>> greedy_selection(z, labels, costs=[1, 1, 5], budget=2.5).counts.tolist()
    [1, 1, 0]
    """
    if combiner not in COMBINERS:
        raise ValueError(f"combiner: expected one of {COMBINERS}; got {combiner!r}")
    check_options(metric, ("nll", "accuracy", "brier"), rounds, bags, share)
    z = _checked(logits, labels)
    price = prices(len(z), costs, budget, bags)
    check_prior_rows(prior_rows)
    equal, errors = np.full(len(z), 1 / len(z)), PRIOR_ERRORS * prior_rows / PRIOR_ROWS_PER_MEMBER
    softened = z / cautious_temperature(z, equal, labels, combiner, errors)
    prior = prior_rows * len(z) / len(labels) * np.exp(log_mixture(softened, equal, combiner))
    votes, losses = _votes(softened, labels, combiner, metric, prior)
    # The loss of equal probabilities, before any member is taken.
    start = losses(_votes(np.zeros_like(z[:1]), labels, combiner, metric, prior)[0][0])[0]
    order = taken(Search(votes, losses, start, rounds, price), bags, share, budget, seed)
    plain, loss = _votes(z, labels, combiner, metric, np.zeros_like(prior))
    after = np.array([loss(plain[order[: i + 1]].mean(0))[0] for i in range(len(order))])
    counts = np.bincount(order, minlength=len(z))
    cost = float(price[counts > 0].sum()) if costs is not None else float("nan")
    temperature = cautious_temperature(z, counts / counts.sum(), labels, combiner, errors)
    return Selection(counts, order, after, cost, temperature)


def taken(search: Search, bags: int, share: float, budget: float | None, seed: int) -> np.ndarray:
    """The members in the order in which the rounds of all bags take them; arguments as for
    :func:`greedy_selection`."""
    everybody = np.arange(len(search.votes))
    if bags > 1:
        size, drawn = max(1, round(share * len(everybody))), list[np.ndarray]()
        for bag in range(bags):
            drawn.append(np.sort(random_generator("selection bag", seed, bag).permutation(everybody)[:size]))
        return np.concatenate([search.walk(members)[0] for members in drawn])
    if budget is None:
        return search.walk(everybody)[0]
    walks = [search.walk(everybody, budget, by_cost) for by_cost in (False, True)]
    return min(walks, key=lambda walk: walk[1][-1])[0]


def _votes(
    z: np.ndarray, labels: np.ndarray, combiner: Combiner, metric: Metric, prior: np.ndarray
) -> tuple[np.ndarray, Losses]:
    """Each member's summand [K, ...], and the loss (with the NLL, for equals) of a mean of summands.

    ``prior`` [N, C] is the weight of the log-probability of each class, relative to that of the label.
    """
    rows = np.arange(len(labels))
    if combiner == "prob" and metric == "nll":  # the true class suffices, but for the prior
        sample = rows[:: -(-len(rows) // PRIOR_SAMPLE)] if prior.any() else rows[:0]
        p, further = softmax(z, axis=-1), prior[sample].ravel() / max(1, len(sample))
        true = np.concatenate([p[:, rows, labels], p[:, sample].reshape(len(z), -1)], 1)

        def nll(mean: np.ndarray) -> tuple[float, float]:
            with np.errstate(divide="ignore"):
                own = -np.log(mean[: len(rows)]).mean()
            value = float(own - further @ np.log(np.maximum(mean[len(rows) :], LEAST)))
            return value, value

        return true, nll
    # -inf would give NaN where its weight is 0.
    votes = softmax(z, axis=-1) if combiner == "prob" else np.maximum(log_softmax(z, axis=-1), -1e30)
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


@dataclass(frozen=True)
class Search:
    """Members' summands [K, ...], the loss of a mean, the loss without a member, rounds, and prices [K]."""

    votes: np.ndarray
    losses: Losses
    start: float
    rounds: int
    price: np.ndarray

    def walk(
        self, members: np.ndarray, budget: float = np.inf, by_cost: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The members taken up to the best round, and the loss after each."""
        total, order, after = np.zeros(self.votes.shape[1:]), list[int](), list[tuple[float, float]]()
        for count in range(1, self.rounds + 1):
            spent = self.price[list(set(order))].sum()
            affordable = [k for k in members if k in order or spent + self.price[k] <= budget * (1 + 1e-12)]
            if not affordable:
                break
            found = [self.losses((total + self.votes[k]) / count) for k in affordable]
            best = min(range(len(found)), key=found.__getitem__)
            gains = (after[-1][0] if after else self.start) - np.array([loss for loss, _ in found])
            if by_cost and gains.max() > 0:  # a member that runs already costs nothing more
                extra = np.array([0.0 if k in order else self.price[k] for k in affordable])
                best = int(np.argmax(gains / np.maximum(extra, 1e-9 * self.price.max())))
            order.append(int(affordable[best]))
            after.append(found[best])
            total = total + self.votes[order[-1]]
        least, tie = min(after)
        # The first that is as good but for rounding: members taken in turn, (a, b, a, b), are (a, b).
        equal = (a <= least + ROUNDING and b <= tie + ROUNDING for a, b in after)
        end = 1 + next(i for i, is_equal in enumerate(equal) if is_equal)
        return np.array(order[:end], np.int64), np.array([loss for loss, _ in after[:end]])


def _checked(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logits as float64; ValueError unless they are [K, N, C] for N labels."""
    z = np.asarray(logits, np.float64)
    if z.ndim != 3 or len(labels) == 0 or z.shape[1] != len(labels) or z.size == 0:
        shape = f"[K, {len(labels)}, C] for {len(labels)} labels"
        raise ValueError(f"logits: expected {shape}; got {list(z.shape)}")
    return z


def check_options(metric: str, metrics: Sequence[str], rounds: int, bags: int, share: float) -> None:
    """Raise ValueError for a metric that is none of ``metrics``, or a number out of range."""
    if metric not in metrics:
        raise ValueError(f"metric: expected {', '.join(metrics[:-1])} or {metrics[-1]}; got {metric!r}")
    for name, value in (("rounds", rounds), ("bags", bags)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1; got {value}")
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1]; got {share}")


def prices(
    count: int, costs: Sequence[float] | np.ndarray | None, budget: float | None, bags: int
) -> np.ndarray:
    """The members' costs, float64 [K]; ones without costs."""
    price = np.ones(count) if costs is None else np.asarray(costs, np.float64)
    if price.shape != (count,) or not np.isfinite(price).all() or (price < 0).any():
        expected = f"{count} numbers of at least 0, one for each member"
        raise ValueError(f"costs: expected {expected}; got {price.tolist()}")
    if budget is None:
        return price
    if costs is None:
        raise ValueError("budget: expected costs beside it, one for each member; got none")
    if bags > 1:
        raise ValueError(
            f"bags: expected 1 within a budget, which the sum of several selections would exceed; got {bags}"
        )
    if not budget >= price.min():
        raise ValueError(
            f"budget: expected at least {price.min():g}, the cost of the cheapest member; got {budget}"
        )
    return price
