"""One trunk with a head for each data set, and students of pixels and anchors."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, cache_targets
from ensdistill.loss.settings import LossSettings
from ensdistill.models import MLP
from ensdistill.student.shared import Headed, HeadSet, distill_sets
from ensdistill.student.shared.training import turns
from ensdistill.teachers.members import load_member
from ensdistill.teachers.positions import PositionEnsemble

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype(np.float32)
IMAGES = RNG.normal(size=(24, 2, 6, 5)).astype(np.float32)
SHORT = Optimization(steps=60, batch_size=20, learning_rate=0.02)
TRUNK = partial(MLP, inputs=6, hidden=[24], outputs=16)


def rows_of(classes: int) -> Rows:
    labels = np.where(np.arange(120) < 60, (X[:, 0] > 0) + (classes > 2) * (X[:, 1] > 0), -100)
    return Rows(X, np.arange(120), labels.astype(np.int64))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("sets"), {}
    torch.manual_seed(0)
    for name, classes in (("three", 3), ("two", 2)):
        members = []
        for _ in range(2):
            model = MLP(6, [8], classes)
            with torch.no_grad():
                model[-1].weight *= 4
            members.append(model)
        found[name] = cache_targets(Ensemble.from_members(members), rows_of(classes), folder / name)
    return found


def sets_of(caches, **more):
    return {
        name: HeadSet(rows_of(k), caches[name], partial(nn.Linear, in_features=16, out_features=k), **more)
        for name, k in (("three", 3), ("two", 2))
    }


def test_each_head_learns_its_own_ensemble_and_the_trunk_is_shared(caches) -> None:
    found = distill_sets(TRUNK, sets_of(caches), Optimization(200, 20, 0.02), seed=3)
    trunks = [found.modules[name].trunk for name in ("three", "two")]
    for one, other in zip(*(trunk.parameters() for trunk in trunks), strict=True):
        assert torch.equal(one, other)
    for name, own in found.losses.items():
        assert len(own) == 100
        assert own[-20:].mean() < 0.3 * own[:5].mean()
        assert found.reports[name].agreement > 0.7


def test_reports_are_those_of_the_held_out_rows(caches) -> None:
    sets = sets_of(caches, held_out=0.25)
    found = distill_sets(TRUNK, sets, SHORT)
    again = distill_sets(TRUNK, sets, SHORT)
    for name in sets:
        assert str(found.reports[name]) == str(again.reports[name])
        assert found.reports[name].rows == 30
    everything = distill_sets(TRUNK, sets_of(caches, held_out=0.0), SHORT)
    report, module = everything.reports["three"], everything.modules["three"]
    with torch.no_grad():
        q = module(torch.from_numpy(X)).double().softmax(1).numpy()
    z = caches["three"].gather_logits(np.arange(120)).astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    p = p.mean(0)
    assert report.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    assert report.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    labels = rows_of(3).labels[:60]
    assert report.accuracy == pytest.approx([(one[:60].argmax(1) == labels).mean() for one in (q, p)])
    assert report.nll == pytest.approx(
        [-np.log(one[np.arange(60), labels]).mean() for one in (q, p)], rel=1e-4
    )


def test_turns_follow_the_weights() -> None:
    for weights in ([1.0], [2.0, 1.0], [0.2, 0.5, 0.3]):
        order = turns(weights, 1000)
        shares = np.array(weights) / sum(weights)
        for stop in (7, 100, 1000):
            counts = np.bincount(order[:stop], minlength=len(weights))
            assert (np.abs(counts - shares * stop) < 1).all()


def test_the_students_are_saved_as_members_of_their_own(caches, tmp_path) -> None:
    found = distill_sets(TRUNK, sets_of(caches), SHORT)
    found.member("two", ("no", "yes")).save(tmp_path)
    again = load_member(tmp_path)
    with torch.no_grad():
        expected = found.modules["two"](torch.from_numpy(X)).numpy()
    np.testing.assert_array_equal(again.predict_logits(X), expected)
    assert again.classes == ("no", "yes")


@pytest.mark.slow
def test_labels_are_mixed_in(caches) -> None:
    plain, mixed = (
        distill_sets(TRUNK, sets_of(caches, loss=LossSettings(alpha=alpha)), SHORT) for alpha in (1.0, 0.5)
    )
    assert not np.allclose(plain.losses["two"], mixed.losses["two"])


class Road(nn.Module):
    """A little segmenter: [N, 2, H, W] to logits [N, 3, H, W]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def road_cache(folder, images=IMAGES, **options):
    torch.manual_seed(1)
    modules = [Road() for _ in range(2)]
    for one in modules:
        with torch.no_grad():
            one.layers[2].weight *= 5
    ensemble = PositionEnsemble(modules, ["sky", "road", "tree"], weights=[3, 1], **options)
    rows = Rows(images, np.arange(len(images)), np.full(len(images), -100))
    return ensemble, rows, cache_targets(ensemble, rows, folder, lengths=ensemble.lengths(rows), codec="fp32")


def test_a_cache_holds_the_logits_of_every_pixel(tmp_path) -> None:
    ensemble, rows, cache = road_cache(tmp_path)
    with torch.no_grad():
        maps = [one(torch.from_numpy(IMAGES)).numpy() for one in ensemble.modules]
    stored = cache.gather_logits(np.array([5, 2])).reshape(2, 2, 6, 5, 3)
    for k, own in enumerate(maps):
        expected = own[[5, 2]].transpose(0, 2, 3, 1)
        shift = stored[k] - expected  # logits are stored up to a shift
        np.testing.assert_allclose(shift, shift[..., :1].repeat(3, -1), atol=1e-5)
    assert cache.weights.tolist() == [0.75, 0.25]
    assert ensemble.lengths(rows).tolist() == [30] * 24


def test_students_of_pixels_learn_the_mixture_at_each_pixel(tmp_path) -> None:
    ensemble, rows, cache = road_cache(tmp_path)
    labels = RNG.integers(0, 3, (24, 6, 5))
    labels[:, 0] = -100
    own = HeadSet(rows, cache, partial(nn.Conv2d, 8, 3, 1), class_dim=1, labels=labels, held_out=0.0)
    trunk = partial(nn.Conv2d, 2, 8, 3, padding=1)
    found = distill_sets(trunk, {"road": own}, Optimization(120, 8, 0.02))
    report = found.reports["road"]
    with torch.no_grad():
        x = torch.from_numpy(IMAGES)
        p = sum(w * one(x).double().softmax(1) for w, one in zip((0.75, 0.25), ensemble.modules, strict=True))
        q = found.modules["road"](x).double().softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    assert report.rows == 24 * 30
    assert report.kl == pytest.approx(float(divergence), rel=1e-3)
    assert report.kl < 0.3 * found.losses["road"][0]
    known = labels != -100
    assert report.accuracy[0] == pytest.approx((q.argmax(1).numpy() == labels)[known].mean())
    # The first loss is that of the batch's pixels, through the same function.
    assert found.losses["road"].shape == (120,)


def test_the_loss_of_pixels_is_their_mean_divergence(tmp_path) -> None:
    ensemble, rows, cache = road_cache(tmp_path, IMAGES[:4])
    frozen = partial(Frozen)
    own = HeadSet(rows, cache, partial(nn.Conv2d, 3, 3, 1), class_dim=1, held_out=0.0)
    found = distill_sets(frozen, {"road": own}, Optimization(1, 4, 1e-12))
    with torch.no_grad():
        x = torch.from_numpy(IMAGES[:4])
        p = sum(w * one(x).double().softmax(1) for w, one in zip((0.75, 0.25), ensemble.modules, strict=True))
        q = found.modules["road"](x).double().softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert found.losses["road"][0] == pytest.approx(float(expected), rel=1e-4)


class Frozen(nn.Module):
    """A fixed map to three channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x[:, :1] * x[:, 1:]], 1)


@pytest.mark.slow
def test_anchors_with_sigmoids_are_learned(tmp_path) -> None:
    torch.manual_seed(2)
    modules = [nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (4, 3))) for _ in range(2)]
    ensemble = PositionEnsemble(modules, ["car", "bus", "bike"], task="multilabel", class_dim=-1)
    rows = Rows(X, np.arange(120), np.full(120, -100))
    cache = cache_targets(ensemble, rows, tmp_path, lengths=ensemble.lengths(rows))
    head = partial(AnchorHead)
    labels = RNG.integers(0, 2, (120, 4, 3)).astype(np.int8)
    labels[:, 0] = -1
    own = HeadSet(rows, cache, head, labels=labels, held_out=0.0)
    found = distill_sets(TRUNK, {"anchors": own}, Optimization(150, 40, 0.02))
    assert found.losses["anchors"][-1] < 0.3 * found.losses["anchors"][0]
    with torch.no_grad():
        x = torch.from_numpy(X)
        p = sum(one(x).double().sigmoid() for one in modules) / 2
        q = found.modules["anchors"](x).double().sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(2).mean()
    assert found.reports["anchors"].kl == pytest.approx(float(kl), rel=0.02)  # of codes of eight bits
    known = labels != -1
    right = ((q >= 0.5).numpy() == (labels == 1))[known].mean()
    assert found.reports["anchors"].accuracy[0] == pytest.approx(right)


class AnchorHead(nn.Module):
    """Features [N, 16] to logits of four anchors, [N, 4, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x).unflatten(1, (4, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"head": partial(nn.Linear, 16, 4)},
            r"sets.three.head: expected 3 classes in dimension -1.*\[2, 4\]",
        ),
        (
            {"head": partial(nn.Linear, 5, 3)},
            r"sets.three: trunk and head do not take the rows, or do not fit",
        ),
        (
            {"rows": Rows(X, np.arange(120) + 1, np.full(120, -100))},
            r"sets.three.rows: expected rows with targets",
        ),
        ({"labels": np.zeros((120, 2), np.int64)}, r"sets.three.labels: expected 1 for each row"),
        (
            {"rows": Rows(X, np.arange(120), np.full(120, -100)), "loss": LossSettings(alpha=0.5)},
            r"sets.three.alpha, rows.labels: alpha = 0.5 mixes in cross entropy",
        ),
    ],
)
def test_sets_that_do_not_fit_are_refused(caches, change, message) -> None:
    given = {"rows": rows_of(3), "cache": caches["three"], "head": partial(nn.Linear, 16, 3)} | change
    with pytest.raises(ValueError, match=message):
        distill_sets(TRUNK, {"three": HeadSet(**given)}, SHORT)


def test_numbers_that_do_not_fit_are_refused(caches, tmp_path) -> None:
    good = {"rows": rows_of(3), "cache": caches["three"], "head": partial(nn.Linear, 16, 3)}
    for change, message in (
        ({"weight": 0.0}, "weight: expected a finite number above 0; got 0.0"),
        ({"held_out": 1.0}, r"held_out: expected a share in \[0, 1\); got 1.0"),
        ({"labels": np.zeros(120, np.int64)}, r"labels: expected \[120, L\], labels at the positions"),
        ({"labels": np.zeros((120, 2))}, "labels: expected integers; got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            HeadSet(**good, **change)
    with pytest.raises(ValueError, match="sets: expected at least one; got none"):
        distill_sets(TRUNK, {}, SHORT)
    with pytest.raises(ValueError, match=r"optimization: expected numbers.*auto"):
        distill_sets(TRUNK, {"a": HeadSet(**good)})
    _, rows, cache = road_cache(tmp_path)
    flat = HeadSet(rows, cache, partial(nn.Sequential, nn.Flatten(), nn.Linear(240, 3)))
    with pytest.raises(ValueError, match=r"sets.road.head: expected outputs at 30 positions.*got 1"):
        distill_sets(partial(nn.Conv2d, 2, 8, 3, padding=1), {"road": flat}, SHORT)
    uneven = SimpleNamespace(
        names=("a",), classes=("x", "y"), weights=np.ones(1), combiner="prob",
        predict_logits=lambda inputs: np.zeros((1, len(inputs), 3, 2), np.float32),
        fingerprint=lambda: {"members": ["a"]},
    )  # fmt: skip
    lengths = np.where(np.arange(24) < 5, 2, 3)
    cache = cache_targets(uneven, rows, tmp_path / "uneven", lengths=lengths)
    with pytest.raises(ValueError, match="expected as many positions in each row; got 2 to 3"):
        distill_sets(Frozen, {"road": HeadSet(rows, cache, partial(nn.Conv2d, 3, 2, 1))}, SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "weights: expected 2, one for each module; got 1"),
        ({"weights": [0.0, 0.0]}, "weights: expected numbers of at least 0 with a positive sum"),
        ({"names": ["a"]}, "names: expected 2"),
        ({"combiner": "mean"}, "combiner: expected one of prob"),
        ({"task": "regression"}, "task: expected classification or multilabel"),
    ],
)
def test_ensembles_of_positions_check_their_numbers(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PositionEnsemble([Road(), Road()], ["a", "b", "c"], **options)


def test_ensembles_of_positions_check_their_outputs() -> None:
    with pytest.raises(ValueError, match="modules: expected at least one"):
        PositionEnsemble([], ["a"])
    wrong = PositionEnsemble([Road()], ["a", "b"])
    with pytest.raises(
        ValueError, match=r"member-1: expected logits at positions with 2 classes in dimension 1"
    ):
        wrong.predict_logits(IMAGES)


def test_a_headed_module_takes_modules_too() -> None:
    trunk, head = nn.Linear(2, 3), nn.Linear(3, 1)
    x = torch.randn(4, 2)
    assert torch.equal(Headed(trunk, head)(x), head(trunk(x)))
