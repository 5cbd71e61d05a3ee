"""Validation, averaged weights, early stopping: against numbers computed by hand, and resumed after a kill."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from small_student import STUDENT
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.cache import CacheMismatch
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.student import OnlineTeachers, Validation
from ensdistill.student.averaging import WeightAverage
from ensdistill.student.validation import draw_share

SHORT = Optimization(steps=200, batch_size=24, learning_rate=0.02, schedule="constant")
N = 240
X = np.random.default_rng(0).normal(size=(N, 16)).astype(np.float32)
Y = np.where(np.arange(N) % 3 == 0, -100, np.arange(N) % 5)
ROWS = Rows(X, np.arange(N)[::-1] * 7, Y)
TRAIN, HELD = ROWS.take(np.arange(60, N)), ROWS.take(np.arange(60))
WEIGHTS = np.array([0.7, 0.3])

pytestmark = pytest.mark.usefixtures("one_thread")


class Norms(nn.Module):
    """With running statistics, dropout, and a count that is no floating-point number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 5)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def members():
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        member = nn.Linear(16, 5).requires_grad_(False)
        member.weight *= 4
        made.append(member)
    return made


@pytest.fixture(scope="module")
def caches(members, tmp_path_factory):
    folder, ensemble = tmp_path_factory.mktemp("validation"), Ensemble.from_members(members, weights=WEIGHTS)
    return {
        "members": cache_targets(ensemble, ROWS, folder / "members", codec="fp32"),
        "mixture": cache_targets(ensemble, ROWS, folder / "mixture", codec="fp32", mixture_at=2.0),
    }


def by_numpy(module, rows, members, temperature=1.0):
    """Agreement with the mixture, its KL divergence, and NLL and accuracy of the labels, in float64."""

    def log_softmax(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    x = torch.from_numpy(rows.inputs)
    with torch.no_grad():
        z = module.eval()(x).double().numpy()
        teachers = [m(x).double().numpy() for m in members]
    p = sum(w * np.exp(log_softmax(t / temperature)) for w, t in zip(WEIGHTS, teachers, strict=True))
    log_q, known = log_softmax(z / temperature), rows.labels != -100
    return {
        "agreement": (p.argmax(1) == z.argmax(1)).mean(),
        "kl": (p * (np.log(p) - log_q)).sum(1).mean(),
        "nll": -log_softmax(z)[known, rows.labels[known]].mean(),
        "accuracy": (z.argmax(1) == rows.labels)[known].mean(),
    }


def agrees(scores, expected):
    for name, value in expected.items():
        found = getattr(scores, name)
        assert (found is None) == (value is None), name
        assert value is None or found == pytest.approx(value, rel=1e-5, abs=1e-6), name


def same(one, other):
    pairs = zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("kind", "temperature"), [("members", 1.0), ("mixture", 2.0)])
def test_scores_are_those_that_numpy_computes(caches, members, kind, temperature):
    trainer = StudentTrainer(SHORT, temperature=2.0)
    trained = trainer.distill(STUDENT, TRAIN, caches[kind], validation=HELD)
    expected = by_numpy(trained.module, HELD, members, temperature)
    assert 0.2 < expected["agreement"] < 1
    chosen = next(e for e in trained.evaluations if e.step == trained.choice.step)
    agrees(chosen.student, expected)
    assert trained.choice.metric == "kl"
    assert trained.choice.value == chosen.student.kl


def test_validation_rows_have_no_part_in_the_training(caches):
    """The evaluations change no bits of the training that goes on after them."""
    trainer = StudentTrainer(SHORT)
    steps = []
    plain = trainer.distill(Norms, TRAIN, caches["members"])
    trained = trainer.distill(
        Norms, TRAIN, caches["members"], validation=HELD, progress=lambda done, total: steps.append(done)
    )
    assert np.array_equal(plain.losses, trained.losses)
    assert [e.step for e in trained.evaluations] == steps


@pytest.mark.parametrize("metric", ["kl", "agreement", "nll", "accuracy"])
def test_the_weights_that_are_returned_are_the_best(caches, members, metric):
    # A learning rate at which no evaluation is like the one before.
    trainer = StudentTrainer(Optimization(256, 16, learning_rate=0.3, schedule="constant"), ema=0.9)
    trained = trainer.distill(
        STUDENT,
        TRAIN,
        caches["members"],
        validation=Validation(rows=HELD, metric=metric, every=32),
        watch=X[:3],
    )
    values = [
        (getattr(scores, metric), e.step, name)
        for e in trained.evaluations
        for name, scores in (("student", e.student), ("average", e.average))
    ]
    assert len(values) == 16
    best = (max if metric in ("agreement", "accuracy") else min)(v for v, _, _ in values)
    first = next(place for value, *place in values if value == best)
    assert [trained.choice.step, trained.choice.weights] == first
    assert trained.choice.value == best
    assert by_numpy(trained.module, HELD, members)[metric] == pytest.approx(best, rel=1e-5)
    with torch.no_grad():
        np.testing.assert_array_equal(trained.watched[-1], trained.module(torch.from_numpy(X[:3])).numpy())


def test_the_average_is_the_one_computed_by_hand():
    torch.manual_seed(0)
    model, decay, generator = Norms(), 0.8, torch.Generator().manual_seed(1)
    average = WeightAverage(model, decay)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for n in range(1, 31):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        model.train()(torch.randn(4, 16, generator=generator))  # changes the running statistics
        average.update(model)
        d = min(decay, n / (n + 9))
        for name, value in model.state_dict().items():
            kept = (
                value.double()
                if value.dtype == torch.int64
                else d * expected[name] + (1 - d) * value.double()
            )
            expected[name] = kept
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.module.parameters())


def test_the_trainers_average_is_of_the_weights_after_each_step(caches):
    seen = []

    class Seen(StudentTrainer):
        def training_step(self, model, batch, loss):
            seen.append([p.detach().double().clone() for p in self.student.parameters()])
            return super().training_step(model, batch, loss)

    trainer = Seen(Optimization(40, 24, learning_rate=0.02), ema=0.9)

    def factory():
        trainer.student = STUDENT()
        return trainer.student

    trained = trainer.distill(factory, TRAIN, caches["members"])
    assert str(trained.choice) == "the average of the student's weights after step 40"
    plain = StudentTrainer(trainer.optimization).distill(STUDENT, TRAIN, caches["members"])
    after = [*seen[1:], [p.detach().double() for p in plain.module.parameters()]]
    expected = seen[0]
    for n, weights in enumerate(after, 1):
        d = min(0.9, n / (n + 9))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, weights, strict=True)]
    for found, wanted in zip(trained.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    for found, kept in zip(trained.module.parameters(), trained.average.parameters(), strict=True):
        assert torch.equal(found, kept)


def test_training_ends_when_patience_is_exhausted(caches):
    optimization = Optimization(2000, 16, learning_rate=0.3, schedule="constant")
    ends = []
    validation = Validation(rows=HELD, every=32, patience=3)
    trained = StudentTrainer(optimization).distill(
        STUDENT,
        TRAIN,
        caches["members"],
        validation=validation,
        watch=X[:2],
        progress=lambda done, total: ends.append((done, total)),
    )
    values = [e.student.kl for e in trained.evaluations]
    assert len(values) < 60
    assert values.index(min(values)) == len(values) - 4
    last = 32 * len(values)
    assert ends[-1] == (last, last)
    assert ends[-2] == (last - 32, 2000)
    assert trained.steps[-1] == last
    assert len(trained.steps) == len(trained.losses) == len(trained.watched)
    assert np.isfinite(trained.losses).all()
    assert (trained.losses > 0).all()
    with torch.no_grad():
        np.testing.assert_array_equal(trained.watched[-1], trained.module(torch.from_numpy(X[:2])).numpy())


class Stop(Exception):
    pass


@pytest.mark.parametrize("kill", [32, 96, 160])
def test_a_killed_training_chooses_the_same_weights(caches, tmp_path, kill):
    optimization = Optimization(400, 16, learning_rate=0.15, schedule="cosine")
    trainer = StudentTrainer(optimization, temperature=2.0, ema=0.9)
    train = partial(
        trainer.distill,
        Norms,
        TRAIN,
        caches["members"],
        validation=Validation(rows=HELD, every=32, patience=4, metric="agreement"),
        watch=X[:4],
    )
    whole = train()
    assert 160 < whole.evaluations[-1].step < 400  # the patience was exhausted

    def stop(done, total):
        if done >= kill:
            raise Stop

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        train(checkpoint=file, checkpoint_every=64, progress=stop)
    steps = []
    resumed = train(checkpoint=file, checkpoint_every=64, progress=lambda done, _: steps.append(done))
    assert steps[0] == kill // 64 * 64 + 32
    assert same(resumed, whole)
    assert resumed.choice == whole.choice
    assert resumed.evaluations == whole.evaluations
    for name in ("steps", "losses", "watched"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    for one, other in zip(resumed.average.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_share_holds_out_whole_groups_and_sets_of_equal_rows(caches, members):
    x = X.copy()
    x[10:20] = x[0]
    groups = np.where(np.arange(N) < 200, np.arange(N), 900)
    groups[30:60] = 901
    groups[5] = 901
    drawn = draw_share(Rows(x, ROWS.uids, Y, groups=groups), 0.25, seed=3)
    assert drawn.sum() == 60
    for together in (np.r_[0, 10:20], np.r_[5, 30:60], np.r_[200:N]):
        assert len(set(drawn[together])) == 1
    assert not np.array_equal(drawn, draw_share(Rows(x, ROWS.uids, Y, groups=groups), 0.25, seed=4))
    # A share is the same as passing its rows.
    trainer, part = StudentTrainer(SHORT), draw_share(ROWS, 0.2, seed=7)
    share = trainer.distill(STUDENT, ROWS, caches["members"], validation=0.2, seed=7)
    given = trainer.distill(STUDENT, ROWS.take(~part), caches["members"], validation=ROWS.take(part), seed=7)
    assert same(share, given)
    assert share.evaluations == given.evaluations


def test_labels_alone_are_compared_where_there_are_no_targets(caches, members):
    labelled = Rows(X, ROWS.uids, np.arange(N) % 5)
    direct = StudentTrainer(SHORT).direct(
        STUDENT, labelled.take(np.arange(60, N)), classes=5, validation=labelled.take(np.arange(60))
    )
    assert direct.choice.metric == "nll"
    chosen = next(e for e in direct.evaluations if e.step == direct.choice.step).student
    expected = by_numpy(direct.module, labelled.take(np.arange(60)), members)
    agrees(chosen, {"nll": expected["nll"], "accuracy": expected["accuracy"]})
    assert chosen.kl is chosen.agreement is None
    others = Rows(X[:50] + 1, np.arange(50) + 10**6, np.arange(50) % 5)  # not in the cache
    assert (
        StudentTrainer(SHORT).distill(STUDENT, ROWS, caches["members"], validation=others).choice.metric
        == "nll"
    )


def test_a_member_alone_is_compared_with_that_member(caches, members):
    trained = StudentTrainer(SHORT).distill(
        STUDENT, TRAIN, caches["members"], member=caches["members"].names[1], validation=HELD
    )
    x = torch.from_numpy(HELD.inputs)
    with torch.no_grad():
        log_p, log_q = (m(x).double().log_softmax(1) for m in (members[1], trained.module))
    assert trained.choice.value == pytest.approx(
        float((log_p.exp() * (log_p - log_q)).sum(1).mean()), rel=1e-5
    )


def test_rows_of_a_cache_with_views_are_seen_in_their_first_version(tmp_path):
    torch.manual_seed(0)
    member = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)
    rows, augment = Rows(X.reshape(N, 1, 4, 4), ROWS.uids, Y), ShiftImages(1)
    cache = cache_targets(
        Ensemble.from_members([member]), rows, tmp_path / "views", codec="fp32", augment=augment, views=3
    )
    # A student that is the member: it agrees on these versions alone.
    trainer = StudentTrainer(Optimization(32, 24, learning_rate=1e-12, weight_decay=0.0))

    def copied():
        made = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        made.load_state_dict(member.state_dict())
        return made

    trained = trainer.distill(copied, rows, cache, augment=augment, validation=0.2)
    assert trained.evaluations[-1].student.agreement == 1
    assert trained.evaluations[-1].student.kl == pytest.approx(0, abs=1e-6)


def refusals():
    other = Rows(X[:2], np.array([7, 10**7]), np.array([0, 1]))
    unlike = Rows(X[:2] + 1, HELD.uids[:2], HELD.labels[:2])
    wrong = Rows(HELD.inputs, HELD.uids, np.full(60, 5))
    new = Rows(X[:2], np.array([10**7, 10**8]), np.array([-100, -100]))
    return [
        pytest.param(
            ROWS, ValueError, r"^validation: uid \d+ is among the rows that are trained on", id="both"
        ),
        pytest.param(
            TRAIN.take(np.arange(0)), ValueError, "^validation: expected at least one row", id="none"
        ),
        pytest.param(wrong, ValueError, r"^validation: expected labels 0\.\.4 or -100; uid", id="labels"),
        pytest.param(new, ValueError, "^validation: none of the 2 rows has a label or targets", id="nothing"),
        pytest.param(
            unlike, ValueError, r"^inputs: uid \d+ .* is not what the cache was made from", id="unlike"
        ),
        pytest.param(
            1.0, ValueError, r"^validation: expected a share of the rows in \(0, 1\); got 1.0", id="1"
        ),
        pytest.param("a", TypeError, "^validation: expected Rows, a share of the rows, or", id="text"),
        pytest.param(True, TypeError, "^validation: expected Rows, a share of the rows, or", id="bool"),
        pytest.param(other, ValueError, "^validation: 1 of the 2 rows have targets in the cache", id="some"),
    ]


@pytest.mark.parametrize(("validation", "error", "message"), refusals())
def test_rows_that_cannot_validate_are_refused(caches, validation, error, message):
    rows = TRAIN if isinstance(validation, Rows) and validation is not ROWS else ROWS
    if isinstance(validation, Rows) and 7 in validation.uids:
        rows = rows.take(rows.uids != 7)
    with pytest.raises(error, match=message):
        StudentTrainer(SHORT).distill(STUDENT, rows, caches["members"], validation=validation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"^validation\.every: expected an integer of at least 1; got 0"),
        ({"patience": 1.5}, r"^validation\.patience: expected an integer of at least 1; got 1.5"),
        (
            {"metric": "loss"},
            r"^validation\.metric: expected one of agreement, kl, nll, accuracy, distance, rmse; got 'loss'",
        ),
    ],
)
def test_settings_of_a_validation_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Validation(rows=0.1, **settings)


def test_a_metric_needs_its_labels_or_targets(caches):
    unlabelled = Validation(rows=HELD.without_labels(), metric="nll")
    with pytest.raises(
        ValueError, match=r"'nll' needs rows with a label, and none has; choose kl or agreement"
    ):
        StudentTrainer(SHORT).distill(STUDENT, TRAIN, caches["members"], validation=unlabelled)
    labelled = Rows(X, ROWS.uids, np.arange(N) % 5)
    with pytest.raises(
        ValueError, match=r"'kl' needs rows with targets in a cache, .*; choose nll or accuracy"
    ):
        StudentTrainer(SHORT).direct(
            STUDENT, labelled, classes=5, validation=Validation(rows=0.1, metric="kl")
        )


@pytest.mark.parametrize("decay", [0.0, 1.0, float("nan"), "0.9"])
def test_a_decay_outside_0_and_1_is_refused(decay):
    with pytest.raises(ValueError, match=r"^ema: expected a decay between 0 and 1"):
        StudentTrainer(SHORT, ema=decay)


def test_a_student_that_cannot_be_copied_has_no_average(caches):
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(ValueError, match=r"^ema: Own can't be copied \(no copies\)"):
        StudentTrainer(SHORT, ema=0.9).distill(partial(Own, 16, 5), TRAIN, caches["members"])


class Lazily:
    """A map-style data set."""

    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    def __len__(self):
        return len(self.x)

    def __getitem__(self, position):
        return self.x[position], int(self.labels[position])


def test_lazy_rows_and_online_teachers_are_validated_alike(caches, members, tmp_path):
    trainer, ensemble = StudentTrainer(SHORT), Ensemble.from_members(members, weights=WEIGHTS)
    expected = trainer.distill(STUDENT, ROWS, caches["members"], validation=0.2)
    online = trainer.distill(STUDENT, ROWS, OnlineTeachers(ensemble), validation=0.2)
    lazy = Rows(Lazily(X, Y), ROWS.uids, Y)
    cache = cache_targets(ensemble, lazy, tmp_path / "lazy", codec="fp32")
    read = trainer.distill(STUDENT, lazy, cache, validation=0.2, workers=0)
    for found in (online, read):
        assert found.choice.step == expected.choice.step
        for one, other in zip(found.evaluations, expected.evaluations, strict=True):
            agrees(one.student, vars(other.student))
    # Lazy samples are compared with the cache when they are read.
    changed = Rows(Lazily(X + (np.arange(N) < 60)[:, None].astype(np.float32), Y), ROWS.uids, Y)
    with pytest.raises(CacheMismatch, match=r"^inputs: uid \d+"):
        trainer.distill(
            STUDENT,
            changed.take(np.arange(60, N)),
            cache,
            validation=changed.take(np.arange(60)),
            workers=0,
        )


@pytest.mark.slow
def test_a_compiled_student_has_the_same_average(caches):
    compiled, plain = (
        StudentTrainer(SHORT, ema=0.9, compile=backend).distill(
            STUDENT, ROWS, caches["members"], validation=0.2
        )
        for backend in ("aot_eager", False)
    )
    assert type(compiled.average) is type(compiled.module) is MLP
    assert compiled.choice.step == plain.choice.step
    for one, other in zip(compiled.average.parameters(), plain.average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
