"""The student's training: against a loop written out by hand, resumed, and its refusals."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from ensdistill.cache import CacheCorrupt, CacheMismatch, TargetCache, cache_targets
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.optimization import Optimization
from ensdistill.common.random import BatchOrder, derive_seed
from ensdistill.data import UNLABELLED, Digits, Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import MLP
from ensdistill.student.trainer import StudentTrainer

N, LABELLED = 230, 70
WEIGHTS = np.array([0.7, 0.3])
SHORT = Optimization(steps=70, batch_size=32, learning_rate=0.01, schedule="cosine")
STUDENT = partial(MLP, inputs=64, hidden=[12], outputs=10, dropout=0.1)
# Two float32 losses that round differently, 1e-7 of a gradient at each of 70 steps; AdamW's division by the
# gradient's own size makes more of it where a gradient is near zero.
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows():
    data, labels = load_digits(return_X_y=True)
    labels = labels[:N].astype(np.int64)
    labels[LABELLED:] = UNLABELLED
    return Rows((data[:N] / 16).astype(np.float32), np.random.default_rng(3).permutation(N), labels)


@pytest.fixture(scope="module")
def members():
    data, labels = load_digits(return_X_y=True)
    return [LogisticRegression(C=c, max_iter=300).fit(data[-400:] / 16, labels[-400:]) for c in (0.02, 20.0)]


def make_cache(
    members, rows, folder, names=("soft", "sharp"), weights=WEIGHTS, combiner="prob", codec="fp32"
):
    ensemble = SimpleNamespace(
        names=tuple(names),
        classes=tuple("0123456789"),
        weights=np.asarray(weights, np.float64),
        combiner=combiner,
        predict_logits=lambda inputs: np.stack([m.decision_function(inputs) for m in members]).astype(
            np.float32
        ),
        fingerprint=lambda: {
            "members": list(names),
            "weights": np.asarray(weights).tolist(),
            "combiner": combiner,
        },
    )
    return cache_targets(ensemble, rows, folder, codec=codec)


@pytest.fixture(scope="module")
def caches(members, rows, tmp_path_factory):
    return {
        combiner: make_cache(members, rows, tmp_path_factory.mktemp(combiner) / "targets", combiner=combiner)
        for combiner in ("prob", "logit", "log_prob")
    }


def same(one, other):
    pairs = zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and np.array_equal(one.losses, other.losses)


def distance(one, other):
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def by_hand(rows, logits, weights, combiner, temperature, alpha, seed):
    """The training written out: logits [K, N, C] of the members in the order of ``rows``."""
    torch.manual_seed(derive_seed("student", seed))
    model = STUDENT()
    optimizer, scheduler = SHORT.build(model.parameters())
    order = BatchOrder(len(rows), SHORT.batch_size, derive_seed("student batches", seed))
    weights = torch.from_numpy(weights / weights.sum())[:, None, None]
    z = torch.from_numpy(logits).double() / temperature
    if combiner == "prob":
        target = (weights * z.softmax(2)).sum(0)
    elif combiner == "logit":
        target = (weights * z).sum(0).softmax(1)
    else:
        target = (weights * z.log_softmax(2)).sum(0).softmax(1)
    x, y = torch.from_numpy(rows.inputs), torch.from_numpy(rows.labels)
    model.train()
    for step in range(SHORT.steps):
        if step % 32 == 0:
            torch.manual_seed(derive_seed("student dropout", seed, step // 32, 0))
        index = torch.from_numpy(order(step))
        out = model(x[index]).double()
        p, log_q = target[index], (out / temperature).log_softmax(1)
        loss = alpha * temperature**2 * (p * (p.log() - log_q)).sum(1).mean()
        known = y[index] != UNLABELLED
        if known.any():
            loss = loss + (1 - alpha) * -out.log_softmax(1)[known, y[index][known]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return SimpleNamespace(module=model.eval())


def member_logits(members, rows):
    return np.stack([m.decision_function(rows.inputs) for m in members]).astype(np.float32)


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize(
    ("combiner", "temperature", "alpha", "member"),
    [
        ("prob", 1.0, 1.0, None),
        ("prob", 3.0, 0.6, None),
        ("prob", 2.0, 1.0, "sharp"),
        ("logit", 1.0, 1.0, None),
        ("log_prob", 2.0, 0.5, None),
    ],
)
def test_the_training_is_the_one_that_is_written_out(
    members, rows, caches, combiner, temperature, alpha, member, impl
):
    trainer = StudentTrainer(SHORT, temperature=temperature, alpha=alpha, impl=impl)
    trained = trainer.distill(STUDENT, rows, caches[combiner], seed=5, member=member)
    weights = WEIGHTS if member is None else np.array([0.0, 1.0])
    logits = member_logits(members, rows)
    expected = by_hand(rows, logits, weights, combiner, temperature, alpha, seed=5)
    for found, wanted in zip(trained.module.parameters(), expected.module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)
    # Each of the settings makes more of a difference than the tolerance forgives.
    others = [
        (WEIGHTS[::-1].copy(), temperature, alpha),
        (weights, temperature + 1, alpha),
        (weights, temperature, alpha - 0.3),
    ]
    for other in others:
        changed = by_hand(rows, logits, other[0], combiner, *other[1:], seed=5)
        assert distance(trained, changed) > 20 * CLOSE["atol"]


def test_quantised_targets_serve_as_well(members, rows, caches, tmp_path):
    cache = make_cache(members, rows, tmp_path / "targets", codec="uint8")
    exact, coarse = (StudentTrainer(SHORT).distill(STUDENT, rows, c) for c in (caches["prob"], cache))
    # A code is half a step of 1/255 of a row's logit range at most: far less than one training step moves the
    # weights.
    assert 0 < distance(exact, coarse) < SHORT.learning_rate


def test_one_member_is_the_cache_of_that_member_alone(members, rows, caches, tmp_path):
    alone = make_cache(members[1:], rows, tmp_path / "alone", names=["sharp"], weights=[1.0])
    trainer = StudentTrainer(SHORT, temperature=2.0)
    one = trainer.distill(STUDENT, rows, caches["prob"], member="sharp")
    assert distance(one, trainer.distill(STUDENT, rows, alone)) < CLOSE["atol"]
    assert distance(one, trainer.distill(STUDENT, rows, caches["prob"], member="soft")) > 20 * CLOSE["atol"]


def test_a_student_learns_the_mixture(members, rows, caches):
    optimization = Optimization(steps=600, batch_size=64, learning_rate=0.02, schedule="cosine")
    trained = StudentTrainer(optimization).distill(
        partial(MLP, inputs=64, hidden=[32], outputs=10), rows, caches["prob"]
    )
    logits = torch.from_numpy(member_logits(members, rows)).double()
    mixture = (torch.from_numpy(WEIGHTS)[:, None, None] * logits.softmax(2)).sum(0)
    with torch.no_grad():
        log_q = trained.module(torch.from_numpy(rows.inputs)).double().log_softmax(1)
    kl = (mixture * (mixture.log() - log_q)).sum(1).mean()
    assert kl < 0.02
    assert (log_q.argmax(1) == mixture.argmax(1)).double().mean() > 0.98
    assert trained.losses[-1] < 0.05 * trained.losses[0]


def test_rows_without_a_label_have_no_hard_term(rows, caches):
    trainer = StudentTrainer(SHORT, temperature=2.0, alpha=0.5)
    before = trainer.distill(STUDENT, rows, caches["prob"])
    labels = rows.labels.copy()
    labels[0] = (labels[0] + 1) % 10
    assert not same(before, trainer.distill(STUDENT, Rows(rows.inputs, rows.uids, labels), caches["prob"]))
    # With alpha = 1 labels are not even looked at.
    soft = StudentTrainer(SHORT, temperature=2.0)
    assert same(
        soft.distill(STUDENT, rows, caches["prob"]),
        soft.distill(STUDENT, rows.without_labels(), caches["prob"]),
    )
    # Nothing to learn from but decay: hard labels alone, and none in the batch.
    idle = StudentTrainer(Optimization(steps=1, batch_size=4, weight_decay=0.0), alpha=0.0)
    first = BatchOrder(N, 4, derive_seed("student batches", 0))(0)
    labels = np.full(N, UNLABELLED)
    labels[np.setdiff1d(np.arange(N), first)[0]] = 3
    torch.manual_seed(derive_seed("student", 0))
    trained = idle.distill(STUDENT, Rows(rows.inputs, rows.uids, labels), caches["prob"])
    assert all(
        torch.equal(a, b) for a, b in zip(trained.module.parameters(), STUDENT().parameters(), strict=True)
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_mixture_with_labels_that_are_not_there(rows, caches, alpha):
    trainer = StudentTrainer(SHORT, alpha=alpha)
    with pytest.raises(
        ValueError,
        match=rf"^alpha, rows\.labels: alpha = {alpha} mixes in .* none of the {N} rows has a label",
    ):
        trainer.distill(STUDENT, rows.without_labels(), caches["prob"])
    labels = rows.labels.copy()
    labels[3] = 10
    with pytest.raises(
        ValueError, match=rf"^rows\.labels: expected 0\.\.9 or -100; uid {rows.uids[3]} has 10$"
    ):
        trainer.distill(STUDENT, Rows(rows.inputs, rows.uids, labels), caches["prob"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "bf17"}, r"^mixed_precision: expected one of no, bf16, fp16; got 'bf17'$"),
        ({"impl": "fast"}, r"^impl: expected one of fused, reference, compile; got 'fast'$"),
        ({"alpha": 1.5}, r"^alpha: expected a number from 0 to 1; got 1\.5$"),
        ({"reduction": "sum"}, r"^loss\.reduction: expected 'mean', .* got 'sum'$"),
        ({"alpha": float("nan")}, r"^alpha: .* got nan$"),
        ({"temperature": 0.0}, r"^temperature: expected a number from 0\.0001 to 10000; got 0\.0$"),
    ],
)
def test_settings_that_no_trainer_has(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentTrainer(SHORT, **settings)


def test_the_seed_decides_and_the_callers_generator_is_left_alone(rows, caches):
    trainer = StudentTrainer(SHORT)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = trainer.distill(STUDENT, rows, caches["prob"], seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, trainer.distill(STUDENT, rows, caches["prob"], seed=1))
    assert not same(first, trainer.distill(STUDENT, rows, caches["prob"], seed=2))


def test_watching_changes_nothing(rows, caches):
    trainer = StudentTrainer(SHORT)
    watched = trainer.distill(STUDENT, rows, caches["prob"], watch=rows.inputs[:9])
    assert same(watched, trainer.distill(STUDENT, rows, caches["prob"]))
    assert watched.watched.shape == (len(watched.steps), 9, 10)
    assert watched.steps[-1] == SHORT.steps
    with torch.no_grad():
        np.testing.assert_array_equal(
            watched.watched[-1], watched.module(torch.from_numpy(rows.inputs[:9])).numpy()
        )


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, total):
        assert total == SHORT.steps
        if done >= step:
            raise Stop

    return progress


@pytest.mark.parametrize("step", [32, 64])
@pytest.mark.parametrize("kind", ["distill", "direct"])
def test_an_interrupted_training_ends_with_the_same_bits(rows, caches, tmp_path, kind, step):
    trainer, steps = StudentTrainer(SHORT, temperature=2.0, alpha=0.7), []
    if kind == "distill":
        train = partial(trainer.distill, STUDENT, rows, caches["prob"], seed=3, watch=rows.inputs[:4])
    else:
        labelled = Digits(labelled=60, pool=60).split(0).labelled
        train = partial(
            trainer.direct,
            STUDENT,
            labelled,
            classes=10,
            seed=3,
            augment=ShiftImages(),
            watch=labelled.inputs[:4],
        )
    undisturbed = train()
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        train(checkpoint=file, checkpoint_every=32, progress=stop_at(step))
    resumed = train(checkpoint=file, checkpoint_every=32, progress=lambda done, total: steps.append(done))
    assert steps == [*range(step + 32, SHORT.steps, 32), SHORT.steps]
    assert same(resumed, undisturbed)
    np.testing.assert_array_equal(resumed.watched, undisturbed.watched)


def test_a_checkpoint_of_another_training_is_refused(rows, caches, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        StudentTrainer(SHORT).distill(
            STUDENT, rows, caches["prob"], checkpoint=file, checkpoint_every=32, progress=stop_at(32)
        )
    content = file.read_bytes()
    with pytest.raises(
        CheckpointMismatch,
        match=r"^checkpoint: .*checkpoint.safetensors is of another training:\n"
        r"  loss.settings.temperature: the checkpoint has 1.0, now 4.0\n"
        r"go on with the settings.* or delete it",
    ):
        StudentTrainer(SHORT, temperature=4.0).distill(STUDENT, rows, caches["prob"], checkpoint=file)
    assert file.read_bytes() == content


MODEL = """
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        return {factor} * super().forward(x)
"""


def test_a_checkpoint_of_a_model_that_was_edited_is_refused(rows, caches, tmp_path, module_of):
    file = tmp_path / "checkpoint.safetensors"
    net = module_of(MODEL.format(factor=1)).Net
    with pytest.raises(Stop):
        StudentTrainer(SHORT).distill(
            partial(net, 64, 10),
            rows,
            caches["prob"],
            checkpoint=file,
            checkpoint_every=32,
            progress=stop_at(32),
        )
    net = module_of(MODEL.format(factor=2)).Net  # the same name, the same parameters
    with pytest.raises(CheckpointMismatch, match=r"of another training:\n  student.code differs\n"):
        StudentTrainer(SHORT).distill(partial(net, 64, 10), rows, caches["prob"], checkpoint=file)


def test_the_error_of_a_damaged_checkpoint_names_the_remedy(rows, caches, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: not a readable checkpoint .* delete it"):
        StudentTrainer(SHORT).distill(STUDENT, rows, caches["prob"], checkpoint=file)


def test_direct_is_plain_cross_entropy(rows):
    labelled = rows.take(np.arange(LABELLED))
    trained = StudentTrainer(Optimization(**{**vars(SHORT), "label_smoothing": 0.2})).direct(
        STUDENT, labelled, classes=10, seed=5
    )
    torch.manual_seed(derive_seed("student", 5))
    model = STUDENT()
    optimizer, scheduler = SHORT.build(model.parameters())
    order = BatchOrder(LABELLED, SHORT.batch_size, derive_seed("student batches", 5))
    for step in range(SHORT.steps):
        if step % 32 == 0:
            torch.manual_seed(derive_seed("student dropout", 5, step // 32, 0))
        index = order(step)
        loss = F.cross_entropy(
            model(torch.from_numpy(labelled.inputs[index])),
            torch.from_numpy(labelled.labels[index]),
            label_smoothing=0.2,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert all(
        torch.equal(a, b) for a, b in zip(trained.module.parameters(), model.parameters(), strict=True)
    )


def test_bfloat16_stays_near_float32(rows, caches):
    exact, half = (
        StudentTrainer(SHORT, mixed_precision=p).distill(STUDENT, rows, caches["prob"])
        for p in ("no", "bf16")
    )
    assert (
        0 < abs(half.losses[-1] - exact.losses[-1]) < 0.05 * exact.losses[-1]
    )  # eight bits of mantissa: a few percent at most
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert "forward" not in vars(half.module)  # it predicts in float32, as it will when it is loaded


def test_rows_that_the_cache_was_not_made_from(rows, caches):
    moved = Rows(rows.inputs[::-1].copy(), rows.uids, rows.labels)
    with pytest.raises(CacheMismatch, match=r"inputs: uid \d+ .* is not what the cache was made from"):
        StudentTrainer(SHORT).distill(STUDENT, moved, caches["prob"])


def test_a_flipped_byte_stops_the_training_before_it_starts(members, rows, tmp_path):
    make_cache(members, rows, tmp_path / "targets")
    shard = tmp_path / "targets" / "shard-00000.safetensors"
    blob = bytearray(shard.read_bytes())
    blob[-100] ^= 4
    shard.write_bytes(blob)
    called = []
    with pytest.raises(CacheCorrupt, match="shard-00000"):
        StudentTrainer(SHORT).distill(lambda: called.append(1), rows, TargetCache.open(tmp_path / "targets"))
    assert not called


def test_members_and_models_that_are_not_there(rows, caches):
    trainer = StudentTrainer(SHORT)
    with pytest.raises(ValueError, match=r"member: expected one of soft, sharp; got 'shrap'"):
        trainer.distill(STUDENT, rows, caches["prob"], member="shrap")
    with pytest.raises(
        ValueError, match=r"model: MLP: expected 10 outputs per sample.*\[2, 10\]; got \[2, 7\]"
    ):
        trainer.distill(partial(MLP, outputs=7), rows, caches["prob"])
    with pytest.raises(TypeError, match=r"factory: expected a torch.nn.Module; got int"):
        trainer.distill(lambda: 3, rows, caches["prob"])
    with pytest.raises(
        TypeError, match=r"^factory: expected what makes a new module \(.*\); got the MLP itself$"
    ):
        trainer.distill(STUDENT(), rows, caches["prob"])
    with pytest.raises(TypeError, match=r"^factory: expected what makes a new module \(.*\); got str$"):
        trainer.distill("MLP", rows, caches["prob"])


def test_labels_and_inputs_that_direct_refuses(rows):
    trainer = StudentTrainer(SHORT)
    with pytest.raises(ValueError, match=rf"rows.labels: expected 0..9; uid {rows.uids[LABELLED]} has -100"):
        trainer.direct(STUDENT, rows, classes=10)
    some = rows.take(np.arange(4))
    with pytest.raises(
        ValueError,
        match=r"rows.inputs: expected float32, float64 or integer inputs for a module; got float16",
    ):
        trainer.direct(STUDENT, Rows(some.inputs.astype(np.float16), some.uids, some.labels), classes=10)
    with pytest.raises(ValueError, match=r"rows: expected at least one; got none"):
        trainer.direct(STUDENT, rows.take(np.arange(0)), classes=10)


class BreaksAfter(nn.Module):
    """A linear model whose outputs are NaN from its n-th training step on."""

    def __init__(self, steps):
        super().__init__()
        self.linear, self.left = nn.Linear(64, 10), steps

    def forward(self, x):
        self.left -= self.training
        return self.linear(x) * (float("nan") if self.left < 0 else 1.0)


def test_a_loss_that_is_not_finite_names_the_step(rows, caches, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"^student: the loss is nan at step 42 of 70; its inputs and targets are fine, so .* learning "
        r"rate: lower optimization.learning_rate \(0.01\); the last good checkpoint, of step 32, is kept in .*c$",
    ):
        StudentTrainer(SHORT).distill(
            lambda: BreaksAfter(41), rows, caches["prob"], checkpoint=tmp_path / "c", checkpoint_every=1
        )
    # The kept files are from before.
    with pytest.raises(FloatingPointError, match="step 42 of 70"):
        StudentTrainer(SHORT).direct(lambda: BreaksAfter(41), rows.take(np.arange(LABELLED)), classes=10)


def test_a_module_that_exists_already_or_has_no_shapes_is_no_student():
    rows = Digits().split(seed=0).labelled
    own = MLP(64, [4], 10)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=(
            r"factory: expected a new module from every call; a second call for the student shares 1\.weight"
        ),
    ):
        StudentTrainer(SHORT).direct(lambda: own, rows, classes=10)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with pytest.raises(ValueError, match=r"factory: .*1\.weight of LazyLinear gets one by a first batch"):
        StudentTrainer(SHORT).direct(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), rows, classes=10)
