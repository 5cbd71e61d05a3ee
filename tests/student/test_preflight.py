"""The preflight: leads and spreads of predictions whose figures are known, and the advice on them."""

import io

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from ensdistill import Ensemble
from ensdistill.cli.preflight import as_text, expectations, summary
from ensdistill.common.tasks import TASKS
from ensdistill.student.preflight import HELD_OUT, HeldOut, Lead, Spread, preflight
from ensdistill.student.retention import FILE, NAMES, Features, RetentionRule, rule
from ensdistill.teachers.members import ArrayMember, Moments

ROWS = 300


def logits_of(right: float, labels: np.ndarray, classes: int = 3) -> np.ndarray:
    """Logits [N, C] that give each label the probability ``right``."""
    made = np.full((len(labels), classes), np.log((1 - right) / (classes - 1)))
    made[np.arange(len(labels)), labels] = np.log(right)
    return made.astype(np.float32)


def held_out(members: list[np.ndarray], labels: np.ndarray, **direct: np.ndarray) -> HeldOut:
    made = [
        ArrayMember(np.arange(float(len(labels))), name=f"m{k}", logits=z, classes=["a", "b", "c"])
        for k, z in enumerate(members)
    ]
    return HeldOut(Ensemble.from_members(made), "m0", np.stack(members), labels, direct)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(3, size=ROWS)


def test_a_lead_is_the_mean_difference_with_the_interval_of_one_seed():
    random = np.random.default_rng(0)
    rows = random.normal(0.5, 1.0, size=400)
    lead = Lead.of([rows])
    half = 1.96 * rows.std(ddof=1) / 20
    assert (lead.mean, lead.low, lead.high) == pytest.approx(
        (rows.mean(), rows.mean() - half, rows.mean() + half)
    )
    twice = Lead.of([rows, rows])
    assert (twice.mean, twice.low) == pytest.approx((lead.mean, lead.low))  # the same rows again
    assert lead.certain
    assert not Lead.of([rows - 0.5]).certain
    assert not Lead.of([np.array([1.0])]).certain  # one row shows nothing


def test_leads_are_those_of_the_mixture(labels):
    wrong = (labels + 1) % 3
    halves = np.where(np.arange(ROWS) < ROWS // 2, labels, wrong)
    others = np.where(np.arange(ROWS) < ROWS // 2, wrong, labels)
    members = [logits_of(0.8, halves), logits_of(0.9, others)]
    found = preflight([held_out(members, labels, small=logits_of(0.5, labels))], {})
    p = np.mean([np.exp(z.astype(np.float64)) for z in members], axis=0)
    mixture = np.log(p[np.arange(ROWS), labels])
    best = members[0][np.arange(ROWS), labels]
    assert found.over_best_member["nll"].mean == pytest.approx((mixture - best).mean(), abs=1e-5)
    assert found.over_best_member["accuracy"].mean == pytest.approx(0.0)  # each is right on its half
    assert found.over_direct["small"]["nll"].mean == pytest.approx((mixture - np.log(0.5)).mean(), abs=1e-5)
    assert found.spreads[HELD_OUT].disagreement == pytest.approx(1.0)


def test_a_lead_over_direct_is_that_of_the_seeds_which_have_trained_one(labels):
    members = [logits_of(0.8, labels), logits_of(0.9, labels)]
    one, other = (held_out(members, labels, small=logits_of(p, labels)) for p in (0.5, 0.6))
    without = held_out(members, labels)
    alone = preflight([one], {}).over_direct["small"]
    assert preflight([one, without], {}).over_direct["small"] == alone
    assert preflight([without, one], {}).over_direct["small"] == alone
    assert preflight([one, other], {}).over_direct["small"]["nll"].mean < alone["nll"].mean
    assert preflight([without], {}).over_direct == {}


def test_an_ensemble_no_better_than_a_member_or_a_direct_model_is_not_to_be_distilled(labels):
    same = logits_of(0.7, labels)
    found = preflight([held_out([same, same], labels, small=logits_of(0.7, labels))], {})
    assert found.spreads[HELD_OUT].epistemic == pytest.approx(0.0, abs=1e-9)
    assert any("better than m0 alone" in line for line in found.advice)
    assert any(line.startswith("Don't distil into small") for line in found.advice)


def test_rows_on_which_members_agree_need_others_beside_them(labels):
    unlike = [logits_of(0.9, labels), logits_of(0.9, (labels + 1) % 3)]
    one = held_out(unlike, labels)
    alike = np.stack([logits_of(0.9, labels)] * 2)
    few = Spread.of(alike, one.ensemble.weights, ROWS)
    advice = preflight([one], {"labelled": few}).advice
    assert any(line.endswith("Add a pool of unlabelled rows, or synthetic rows.") for line in advice)
    pool = Spread.of(np.stack(unlike), one.ensemble.weights, 10 * ROWS)
    assert not any(
        "asked too little" in line for line in preflight([one], {"labelled": few, "pool": pool}).advice
    )


def test_a_member_without_held_out_predictions_is_named(labels):
    members = [logits_of(0.7, labels), np.full((ROWS, 3), np.nan, np.float32)]
    one = held_out([members[0], members[0]], labels)
    blind = HeldOut(one.ensemble, "m0", np.stack(members), labels)
    with pytest.raises(ValueError, match=r"^members: m1 have no held-out predictions .* held_out: true"):
        preflight([blind], {})


def learned(error: float = 0.1, **weights: float) -> RetentionRule:
    """A rule with slopes for some features, whose means are 0 and deviations 1."""
    count = len(weights)
    return RetentionRule(
        tuple(weights), (0.0,) * count, (1.0,) * count, tuple(weights.values()), 0.5, error, 0.2, 40, 8
    )


KNOWN = Features(4.0, 10.0, 0.0, 20.0, 3.0, epistemic=0.5)


def test_a_rule_adds_slopes_to_the_mean_and_an_unknown_feature_counts_as_the_mean():
    found = learned(size=0.1, pool=0.2)
    assert found.expect(KNOWN).share == pytest.approx(0.5)
    with_size = found.expect(Features(4.0, 10.0, np.e - 1, 20.0, 3.0, size=np.exp(-2.0)))
    assert with_size.share == pytest.approx(0.5 - 0.2 + 0.2)
    assert str(with_size) == "50% ± 10%"
    far = found.expect(Features(4.0, 10.0, 0.0, 20.0, 3.0, size=np.exp(-9.0)))
    assert far.share == pytest.approx(0.5 - 0.3)  # three deviations at most


def test_a_rule_no_better_than_the_mean_predicts_the_mean_and_says_so():
    found = learned(error=0.2, size=0.1)
    one = found.expect(Features(4.0, 10.0, 0.0, 20.0, 3.0, size=9.0))
    assert (one.share, one.error, one.learned) == (0.5, 0.2, False)
    assert "no rule learned from them is better" in found.source


def test_the_package_has_rules_of_known_features():
    assert FILE.is_file()
    found = {task: one for task in TASKS if (one := rule(task)) is not None}
    assert "classification" in found
    for task, one in found.items():
        assert task in one.tasks
        assert set(one.names) <= set(NAMES)
        assert len(one.means) == len(one.scales) == len(one.weights) == len(one.names)
        assert 0 < one.expect(KNOWN).error < 1
        assert one.sets >= 3


def test_features_are_those_of_the_transfer_set(labels):
    members = [logits_of(0.9, labels), logits_of(0.9, (labels + 1) % 3)]
    one = held_out(members, labels)
    spreads = {"labelled": Spread(ROWS, 0.1, 0.0, 0.0), "exchange": Spread(600, 0.5, 0.2, 0.3)}
    found = preflight([one], spreads, sizes={"small": 0.25})
    made = found.features["small"]
    assert (made.members, made.rows_per_class, made.pool, made.synthetic) == pytest.approx(
        (2.0, 100.0, 0.0, 2.0)
    )
    there = found.spreads[HELD_OUT]
    assert made.epistemic == pytest.approx((600 * 0.2 / 900) / there.epistemic)
    assert made.entropy == pytest.approx(0.5 / there.entropy)
    assert made.size == 0.25


def test_a_pool_is_advised_where_the_rule_gives_it_a_worth(labels):
    random = np.random.default_rng(0)
    noisy = [np.where(random.random(ROWS) < 0.85, labels, (labels + 1) % 3) for _ in range(5)]
    one = held_out([logits_of(0.8, y) for y in noisy], labels)
    spread = {"labelled": Spread(ROWS, 0.5, 0.1, 0.1)}
    sizes = {"small": 0.1}
    found = preflight([one], spread, sizes=sizes, learned=learned(pool=0.1))
    (line,) = [line for line in found.advice if line.startswith("A pool of 3,000 unlabelled rows")]
    share = 0.1 * np.log1p(10)
    assert (
        f"about {share:.0%} of the gain: {100 * share * found.over_best_member['accuracy'].mean:.1f} points"
        f" of accuracy and {share * found.over_best_member['nll'].mean:.3f} nats of NLL" in line
    )
    assert found.expected["small"].share == pytest.approx(0.5)
    silent = preflight([one], spread, sizes=sizes, learned=learned(error=0.3, pool=0.1))
    assert not any(line.startswith("A pool") for line in silent.advice)


GOALS = {"multilabel": ["map", "bce"], "regression": ["rmse", "nll"]}


def of_labels(random):
    labels = random.integers(0, 2, (ROWS, 3)).astype(np.int8)
    labels[:20, 1] = -1
    odds = [(2.0 * labels - 1) * 1.5 + 1.5 * random.normal(size=labels.shape) for _ in range(3)]
    return labels, np.stack(odds).astype(np.float32), np.zeros(labels.shape, np.float32)


def of_numbers(random):
    truth = random.normal(size=(ROWS, 2)) * [1.0, 50.0] + [3.0, 500.0]
    labels = truth + 0.2 * random.normal(size=truth.shape) * [1.0, 50.0]
    means = np.stack([labels + 0.6 * random.normal(size=truth.shape) * [1.0, 50.0] for _ in range(3)])
    constant = np.broadcast_to(labels.mean(0), labels.shape)
    return labels, Moments(means, None), Moments(constant, np.broadcast_to(labels.var(0), labels.shape))


def judged(task: str) -> tuple[HeldOut, np.ndarray]:
    labels, members, direct = (of_labels if task == "multilabel" else of_numbers)(np.random.default_rng(0))
    arrays = members if task == "multilabel" else members.mean
    ensemble = Ensemble.from_members(
        list(arrays), task=task, classes=["a", "b", "c"][: labels.shape[1]], **(
            {"output": "logits"} if task == "multilabel" else {}
        )
    )  # fmt: skip
    ensemble.calibrate(members, labels)
    return HeldOut(ensemble, ensemble.names[0], members, labels, {"small": direct}), labels


@pytest.mark.parametrize("task", GOALS)
def test_leads_of_labels_and_of_numbers_are_differences_of_the_tasks_goals(task):
    one, labels = judged(task)
    found = preflight([one, one], {}, sizes={"small": 0.5}, learned=learned(size=0.1, lead=0.01))
    assert list(found.over_best_member) == list(found.over_direct["small"]) == GOALS[task]
    for leads in (found.over_best_member, found.over_direct["small"]):
        assert all(lead.certain and lead.low < lead.mean < lead.high for lead in leads.values())
    known = found.features["small"]
    assert known.lead == found.over_best_member[GOALS[task][1]].errors  # in likelihood
    assert known.rows_per_class == (ROWS if task == "regression" else (labels == 1).sum() / 3)
    share = 0.5 + 0.1 * np.log(0.5) + 0.01 * min(3, np.log1p(known.lead))
    assert found.expected["small"].share == pytest.approx(share)
    first = found.over_direct["small"][GOALS[task][0]]
    if task == "regression":
        unit, mean = labels.std(0), one.predictions.mean.mean(0)
        rmse = [np.sqrt(np.mean(((m - labels) / unit) ** 2)) for m in (mean, labels.mean(0))]
        assert first.mean == pytest.approx(rmse[1] - rmse[0])
        draws = np.random.default_rng(1).integers(ROWS, size=(2000, ROWS))
        squares = [np.square((m - labels) / unit).mean(1) for m in (mean, labels.mean(0))]
        roots = [np.sqrt(square[draws].mean(1)) for square in squares]
        assert first.high - first.low == pytest.approx(2 * 1.96 * (roots[1] - roots[0]).std(), rel=0.1)
        spread = found.spreads[HELD_OUT]
        between = one.predictions.mean.var(0) / np.square(unit)
        assert spread.epistemic == pytest.approx(between.mean())
        assert spread.entropy > spread.epistemic > 0
    else:
        p = 1 / (1 + np.exp(-one.mixture()))
        precisions = []
        for c in range(3):
            known = labels[:, c] >= 0
            precisions.append(average_precision_score(labels[known, c], p[known, c]))
        shares = [np.mean(labels[labels[:, c] >= 0, c]) for c in range(3)]  # of equal scores
        assert first.mean == pytest.approx(np.mean(precisions) - np.mean(shares))


@pytest.mark.parametrize("task", GOALS)
def test_equal_members_of_either_task_are_not_to_be_distilled(task):
    one, _ = judged(task)
    parts = one.predictions if task == "multilabel" else one.predictions.mean
    same = np.repeat(parts[:1], 3, axis=0)
    if task == "multilabel":
        one.ensemble.temperatures[:] = 1  # those that were fitted to unlike members differ
    alike = HeldOut(one.ensemble, one.best_member, same if task == "multilabel" else Moments(same, None),
                    one.labels, {"small": one.member(0)})  # fmt: skip
    found = preflight([alike], {})
    assert found.spreads[HELD_OUT].epistemic == pytest.approx(0, abs=1e-9)
    assert found.over_direct["small"][GOALS[task][0]].mean == pytest.approx(0, abs=1e-9)
    assert any("better than" in line and "alone" in line for line in found.advice)


def test_a_task_without_a_rule_has_features_and_no_share(monkeypatch):
    monkeypatch.setattr("ensdistill.student.preflight.rule", lambda task: None)
    found = preflight([judged("regression")[0]], {}, sizes={"small": 0.5})
    assert found.features["small"].size == 0.5
    assert found.expected == {}
    (line,) = expectations(found)
    assert line.startswith("Expected to be kept of the gain: no rule for the task regression yet")


@pytest.mark.parametrize(("task", "likelihood", "gains"), [
    ("multilabel", "BCE", "points of mAP and 0."), ("regression", "NLL", "sd of RMSE and 0."),
])  # fmt: skip
def test_shares_and_the_worth_of_a_pool_have_the_metrics_of_the_task(task, likelihood, gains):
    one, _ = judged(task)
    spread = {"labelled": Spread(ROWS, 0.5, 0.1, 0.1)}
    found = preflight([one], spread, sizes={"small": 0.5}, learned=learned(pool=0.1))
    (line,) = expectations(found)
    assert line.startswith(f"Expected to be kept of the gain in {likelihood}: small 50% ± 10% (")
    (line,) = [line for line in found.advice if line.startswith("A pool of 3,000 unlabelled rows")]
    assert gains in line


def test_the_text_has_the_words_of_the_task():
    found = preflight([judged("regression")[0]], {})
    console = Console(width=120, file=io.StringIO())
    console.print(as_text(found))
    text = console.file.getvalue()
    for word in ("RMSE", "NLL", "epistemic, sd²"):
        assert word in text
    (first, *_) = summary(found)
    assert " sd, NLL" in first
    blind = HeldOut(*(getattr(judged("regression")[0], name) for name in ("ensemble", "best_member")),
                    Moments(np.full((3, ROWS, 2), np.nan), None), np.zeros((ROWS, 2)))  # fmt: skip
    with pytest.raises(ValueError, match=r"^members: .* have no held-out predictions"):
        preflight([blind], {})
