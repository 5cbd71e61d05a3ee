"""Students made from a member: what stays, what is stored, and what is refused. Each number is computed anew in
NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.data.samples import form
from ensdistill.models import CNN, MLP, BagOfNgrams, TextTransformer
from ensdistill.student.serving import Student
from ensdistill.student.shrink import Compact, Rounding, Shrink, shrink
from ensdistill.student.shrink.codes import packed, packed_bits, unpacked, unpacked_bits
from ensdistill.teachers.members import CallableMember, TorchMember, load_member

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype(np.float32)
IMAGES = RNG.normal(size=(64, 1, 8, 8)).astype(np.float32)
LABELS = RNG.integers(0, 3, 64)
MLP_OF = partial(MLP, inputs=12, hidden=[40, 24], outputs=3)
CNN_OF = partial(CNN, channels=[6, 8], image=[1, 8, 8], outputs=3)


def member_of(factory) -> TorchMember:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TorchMember(factory(), name="mlp", factory=factory)


def built(student) -> nn.Module:
    module = student.factory().eval()
    module.load_state_dict(dict(student.weights))
    return module


def trained(student, inputs=X, steps: int = 32):
    rows = Rows(inputs, np.arange(len(inputs)), LABELS)
    trainer = StudentTrainer(Optimization(steps=steps, batch_size=16, learning_rate=0.01))
    return trainer.direct(student.factory, rows, classes=3, seed=0, **student.arguments)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_codes_and_masks_are_packed_without_loss(bits: int, count: int) -> None:
    most = 2 ** (bits - 1) - 1
    codes = torch.from_numpy(RNG.integers(-most, most + 1, count).astype(np.int8))
    stored = packed(codes, bits)
    assert stored.numel() == (count if bits == 8 else (count + 1) // 2)
    assert torch.equal(unpacked(stored, count, bits), codes)
    mask = torch.from_numpy(RNG.random(count) < 0.5)
    np.testing.assert_array_equal(packed_bits(mask).numpy(), np.packbits(mask.numpy(), bitorder="little"))
    assert torch.equal(unpacked_bits(packed_bits(mask), count), mask)


@pytest.mark.parametrize("share", [0.3, 0.75])
def test_pruning_keeps_the_largest_weights_of_all_layers(share: float) -> None:
    member = member_of(MLP_OF)
    module = built(shrink(member, {"prune": share}, X))
    names = ["1.weight", "3.weight", "5.weight"]
    before = [member.module.state_dict()[name].numpy() for name in names]
    after = [module.model[int(name[0])].weight.detach().numpy() for name in names]
    magnitudes = np.sort(np.abs(np.concatenate([one.ravel() for one in before])))
    least = magnitudes[round(share * len(magnitudes))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(other, np.where(np.abs(one) >= least, one, 0))


def test_training_moves_the_kept_weights_alone() -> None:
    student = shrink(member_of(MLP_OF), {"prune": 0.8}, X)
    found = trained(student)
    for layer in (1, 3, 5):
        mask = student.weights[f"model.{layer}.parametrizations.weight.0.mask"]
        before = student.weights[f"model.{layer}.parametrizations.weight.original"]
        after = found.module.model[layer].weight.detach()
        assert (after[~mask] == 0).all()
        assert (after[mask] != before[mask]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"prune": 0.75}, 4 * 378 + 190),  # 1512 weights: a quarter as float32, and a bit for each
        ({"post_training": "int8"}, 1512 + 4 * 67),  # a byte for each, and a scale for each row
        ({"post_training": "int4"}, 756 + 4 * (40 + 24 * 2 + 3)),  # half a byte; scales for groups of 32
        ({"prune": 0.75, "quantise": "int8"}, None),
    ],
)
def test_files_hold_few_bytes_and_predict_the_same(settings, stored, tmp_path) -> None:
    student = shrink(member_of(MLP_OF), settings, X)
    member = trained(student, steps=8).member(factory=student.factory)
    member.save(tmp_path)
    again = load_member(tmp_path)
    np.testing.assert_array_equal(again.predict_logits(X), member.predict_logits(X))
    biases, masks = 4 * 67, sum(-(-n // 8) for n in (480, 960, 72))
    assert masks == 60 + 120 + 9
    if stored is not None:
        exact = stored + biases - (190 - masks if "prune" in settings else 0)
        assert member.bytes == exact
        assert exact < (tmp_path / "model.safetensors").stat().st_size < exact + 1200  # and the header
    else:  # a mask, codes of at most a quarter, scales
        assert member.bytes <= masks + 378 + 4 * 67 + biases
    assert member.parameters <= 1512 + 67


@pytest.mark.parametrize(("code", "most"), [("int8", 127), ("int4", 7)])
def test_rounded_weights_are_the_nearest_multiples_of_their_scales(code: str, most: int) -> None:
    member = member_of(MLP_OF)
    module = built(shrink(member, {"post_training": code}, X))
    served = module.finished()
    for layer in (1, 3, 5):
        weight = member.module[layer].weight.detach().double().numpy()
        width = weight.shape[1] if code == "int8" else 32
        for start in range(0, weight.shape[1], width):
            part = weight[:, start : start + width]
            scale = np.abs(part).max(1, keepdims=True) / most
            expected = np.round(part / scale) * scale
            found = served.model[layer].weight.detach().numpy()[:, start : start + width]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_aware_training_sees_the_served_numbers() -> None:
    student = shrink(member_of(CNN_OF), {"quantise": "int8"}, IMAGES)
    module = built(student)
    served, x = module.finished(), torch.from_numpy(IMAGES)
    with torch.no_grad():
        assert torch.allclose(module(x), served(x), atol=1e-4)
        plain = member_of(CNN_OF).module(x)
        assert 0 < (served(x) - plain).abs().max() < 0.1
    # The first layer's inputs are rounded to 256 numbers.
    scale, zero = served.ranges["0"]
    inputs = np.clip(np.round(IMAGES / scale), -zero, 255 - zero) * scale
    assert np.abs(inputs - IMAGES).max() <= scale * 0.51
    first = nn.functional.conv2d(
        torch.from_numpy(inputs.astype(np.float32)),
        *[served.model[0].weight, served.model[0].bias],
        padding=1,
    )
    captured: list[torch.Tensor] = []
    served.model[0].register_forward_hook(lambda *call: captured.append(call[2]))
    with torch.no_grad():
        served(x)
    assert torch.allclose(captured[0], first, atol=1e-5)


def test_gradients_pass_through_the_rounding() -> None:
    module = Rounding(partial(nn.Linear, 4, 2), bits=4)
    weight = module.model.parametrizations.weight.original
    loss = (module(torch.ones(3, 4)) * torch.tensor([1.0, 2.0])).sum()
    loss.backward()
    np.testing.assert_allclose(weight.grad.numpy(), [[3.0] * 4, [6.0] * 4])


@pytest.mark.parametrize("settings", [{"rank": 0.5}, {"energy": 0.8}, {"budget": 0.6}])
@pytest.mark.parametrize("factory", [MLP_OF, CNN_OF])
def test_products_are_the_nearest_of_their_rank(factory, settings) -> None:
    member = member_of(factory)
    student = shrink(member, settings, X if factory is MLP_OF else IMAGES)
    module, total = built(student), 0
    for name, layer in member.module.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        weight = layer.weight.detach().double().flatten(1).numpy()
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        rank = student.factory.keywords["ranks"].get(name)
        other = module.model.get_submodule(name)
        total += sum(p.numel() for n, p in other.named_parameters() if not n.endswith("bias"))
        if rank is None:
            assert torch.equal(other.weight, layer.weight)
            continue
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(other.weight.detach().flatten(1).numpy(), nearest, atol=1e-6)
        if "rank" in settings:
            assert rank == round(0.5 * len(values))
        if "energy" in settings:
            shares = np.cumsum(values**2) / np.sum(values**2)
            assert shares[rank - 1] >= 0.8
            assert rank == 1 or shares[rank - 2] < 0.8
    if "budget" in settings:
        before = sum(p.numel() for n, p in member.module.named_parameters() if n.endswith("weight"))
        assert total <= 0.6 * before
    x = torch.from_numpy(X if factory is MLP_OF else IMAGES)
    with torch.no_grad():
        assert module(x).shape == (64, 3)


def test_convolutions_as_products_compute_the_convolution_of_their_weight() -> None:
    member = member_of(CNN_OF)
    module = built(shrink(member, {"rank": 0.4}, IMAGES))
    product = module.model[3]
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        direct = nn.functional.conv2d(x, product.weight, product.bias, padding=1)
        assert torch.allclose(product(x), direct, atol=1e-5)


@pytest.mark.parametrize(("factory", "inputs"), [(MLP_OF, X), (CNN_OF, IMAGES)])
def test_structured_pruning_leaves_fewer_channels(factory, inputs, tmp_path) -> None:
    pytest.importorskip("torch_pruning")
    member = member_of(factory)
    student = shrink(member, {"structured": 0.5}, inputs)
    module = built(student)
    widths = [layer.weight.shape[0] for layer in module.modules() if hasattr(layer, "weight")]
    before = [layer.weight.shape[0] for layer in member.module.modules() if hasattr(layer, "weight")]
    assert widths == [*(n // 2 for n in before[:-1]), 3]
    # The channels of the first layer that stay are some of its own.
    first = next(layer for layer in module.modules() if hasattr(layer, "weight")).weight.detach()
    own = next(layer for layer in member.module.modules() if hasattr(layer, "weight")).weight.detach()
    assert all((own == row).flatten(1).all(1).any() for row in first)
    made = trained(student, inputs, 16).member(factory=student.factory)
    made.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(inputs), made.predict_logits(inputs))


def test_a_network_whose_code_reads_its_sizes_is_refused() -> None:
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=r"shrink.structured: Fixed: the shapes of its layers no longer fit"):
        shrink(member_of(Fixed), {"structured": 0.5}, X)


class Fixed(nn.Module):
    """Its forward pass needs 16 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu().reshape(len(x), 16))


@pytest.mark.slow
def test_ids_and_attention_are_quantised_and_saved(tmp_path) -> None:
    ids = RNG.integers(1, 50, (20, 6))
    for i, factory in enumerate(
        (
            partial(BagOfNgrams, buckets=50, width=8, outputs=3),
            partial(TextTransformer, buckets=50, length=6, width=8, heads=2, layers=1, outputs=3),
        )
    ):
        member = member_of(factory)
        student = shrink(member, {"prune": 0.3, "post_training": "int8"}, ids)
        served = TorchMember(
            built(student).finished(), factory=built(student).finished().made_by(student.factory)
        )
        served.save(tmp_path / str(i))
        np.testing.assert_array_equal(
            load_member(tmp_path / str(i)).predict_logits(ids), served.predict_logits(ids)
        )
        assert served.bytes < 0.5 * member.bytes


@pytest.mark.slow
def test_regression_students_keep_their_units(tmp_path) -> None:
    rows = Rows(X, np.arange(64), 100 + 5 * X[:, :2].astype(np.float64))
    trainer = StudentTrainer(Optimization(steps=64, batch_size=32, learning_rate=0.02))
    factory = partial(MLP, inputs=12, hidden=[16], outputs=2)
    member = trainer.direct(factory, rows).member("numbers", factory=factory)
    student = shrink(member, Shrink(prune=0.5, quantise="int8"), X)
    made = trainer.direct(student.factory, rows, **student.arguments).member(factory=student.factory)
    made.save(tmp_path)
    again = load_member(tmp_path)
    np.testing.assert_array_equal(again.predict_moments(X).mean, made.predict_moments(X).mean)
    assert np.abs(made.predict_moments(X).mean - 100).mean() < 10
    assert made.bytes < 0.5 * member.bytes


@pytest.mark.slow
def test_graphs_hold_codes_and_predict_alike() -> None:
    from ensdistill.student.export import to_onnx

    for factory, inputs in ((MLP_OF, X), (CNN_OF, IMAGES)):
        for settings, tolerance in (({"quantise": "int8"}, 0.05), ({"post_training": "int8"}, 1e-4)):
            student = shrink(member_of(factory), settings, inputs)
            served = trained(student, inputs).member(factory=student.factory)
            exported = to_onnx(Student(served, ("a", "b", "c"), (0, 1, 2), form(inputs)), inputs)
            assert exported.largest_difference <= tolerance
            codes = [c for c in exported.model.graph.initializer if c.data_type == 3]  # int8
            weights = sum(np.prod(c.dims) for c in codes if len(c.dims) > 1)
            assert weights == sum(
                p.numel() for n, p in served.module.named_parameters() if n.endswith("weight")
            )
            assert not [c for c in exported.model.graph.initializer if c.data_type == 1 and len(c.dims) > 1]


@pytest.mark.slow
def test_torch_programs_predict_as_the_student(tmp_path) -> None:
    from ensdistill.student.serving.as_torch import to_torch

    student = shrink(member_of(MLP_OF), {"quantise": "int8"}, X)
    served = trained(student, steps=4).member(factory=student.factory)
    assert to_torch(Student(served, ("a", "b", "c"), (0, 1, 2), form(X)), X).largest_difference < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "shrink: expected at least one of prune, structured"),
        ({"prune": 0}, "shrink.prune: expected a share between 0 and 1; got 0"),
        ({"prune": "much"}, "prune"),
        ({"quantise": "int16"}, "shrink.quantise: expected int8 or int4; got 'int16'"),
        (
            {"quantise": "int8", "post_training": "int4"},
            "shrink.post_training: expected none beside quantise",
        ),
        ({"energy": 0.5, "budget": 0.5}, "shrink.budget: expected none beside energy"),
        ({"prune": 0.9999}, r"shrink.prune: 0.9999 leaves no weight of"),
        ({"rank": 0.95}, "expected a layer that becomes smaller as a product of two; the 3 linear layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        shrink(member_of(MLP_OF), settings, X)


def test_members_that_are_no_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shrink.member: expected a network.*rule is a .*CallableMember"):
        shrink(CallableMember(lambda x: x[:, :3], name="rule"), {"prune": 0.5}, X)
    with pytest.raises(ValueError, match="a factory builds again; it has none"):
        shrink(TorchMember(MLP_OF(), name="net"), {"prune": 0.5}, X)
    bare = member_of(partial(Bare))
    with pytest.raises(ValueError, match="expected linear layers, convolutions or embeddings; Bare has none"):
        shrink(bare, {"quantise": "int8"}, X)


class Bare(nn.Module):
    """A network of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3] * self.scale


def test_damaged_files_are_refused() -> None:
    module = Compact(partial(nn.Linear, 16, 4), kept={"weight": 10})
    state = module.state_dict()
    assert state["model.weight.values"].shape == (10,)
    with pytest.raises(ValueError, match="expected as many values as the mask has places, 10; got 9"):
        module.load_state_dict(state | {"model.weight.values": torch.zeros(9)})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        module.load_state_dict({name: v for name, v in state.items() if not name.endswith("values")})


@pytest.mark.slow
def test_distillation_recovers_what_shrinking_loses(tmp_path, figures) -> None:
    """Digits: five networks on 200 labels, and one of them smaller, by 5 500 rows of a cache."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x / 16).astype(np.float32)[order], y[order]
    factory = partial(MLP, inputs=64, hidden=[128, 128], outputs=10)
    labelled = Rows(x[:200], np.arange(200), y[:200])
    short = StudentTrainer(Optimization(steps=200, batch_size=32, learning_rate=0.01, weight_decay=0.01))
    modules = [short.direct(factory, labelled, classes=10, seed=seed).module for seed in range(5)]
    members = [TorchMember(one, name=f"mlp-{i}", factory=factory) for i, one in enumerate(modules)]
    ensemble = Ensemble.from_members(members)
    rng = np.random.default_rng(1)
    pairs, share = rng.integers(0, 1100, (2, 4400)), rng.beta(0.5, 0.5, (4400, 1)).astype(np.float32)
    mixed = share * x[pairs[0]] + (1 - share) * x[pairs[1]]
    rows = Rows(np.concatenate([x[:1100], mixed]), np.arange(5500), np.full(5500, -100))
    cache = cache_targets(ensemble, rows, tmp_path)

    def judged(logits) -> tuple[float, float]:
        log_p = torch.from_numpy(logits).double().log_softmax(1).numpy()
        right = (log_p.argmax(1) == y[1100:]).mean()
        return 100 * float(right), -float(log_p[np.arange(len(log_p)), y[1100:]].mean())

    lines, kept = [], []
    whole = judged(np.log(ensemble.predict_proba(x[1100:]) + 1e-9))
    alone = judged(members[0].predict_logits(x[1100:]))
    lines.append(f"ensemble {whole[0]:.1f} % {whole[1]:.3f}")
    lines.append(f"member {alone[0]:.1f} % {alone[1]:.3f}, {members[0].bytes} bytes")
    for settings in (
        {"post_training": "int8"},
        {"quantise": "int4"},
        {"prune": 0.85},
        {"rank": 0.2},
        {"prune": 0.8, "quantise": "int8"},
    ):
        start = shrink(members[0], settings, x[:200])
        first = built(start)
        first = first.finished() if isinstance(first, Rounding) else first
        trainer = StudentTrainer(
            Optimization(steps=600, batch_size=64, learning_rate=0.005, weight_decay=0.01, schedule="cosine")
        )
        member = trainer.distill(start.factory, rows, cache, **start.arguments).member(factory=start.factory)
        before, after = (judged(one.predict_logits(x[1100:])) for one in (TorchMember(first), member))
        kept.append((before, after))
        lines.append(
            f"{Shrink(**settings)}: {member.bytes} bytes, {before[0]:.1f} % {before[1]:.3f}, distilled "
            f"{after[0]:.1f} % {after[1]:.3f}"
        )
    figures("\n".join(lines))
    for before, after in kept:
        assert after[1] < before[1]  # NLL
        assert after[0] > whole[0] - 2
