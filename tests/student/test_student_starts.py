"""A student's first weights, the outputs of its module, compiled and recomputed passes, and precisions."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ensdistill import Ensemble, Rows, StudentTrainer
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.models import MLP
from ensdistill.student.recompute import recomputed
from ensdistill.teachers.members import TorchMember

N = 96
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3
ROWS = Rows(X, np.arange(N) * 5, Y)
STUDENT = partial(MLP, 6, [7], 3)
SHORT = StudentOptimization(steps=40, batch_size=24, learning_rate=0.02)
ALL = replace(SHORT, accumulate=2, clip_norm=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def direct(factory=STUDENT, optimization=SHORT, weights=None, rows=ROWS, **settings):
    trainer = StudentTrainer(optimization, **settings)
    return trainer.direct(factory, rows, classes=3, seed=0, weights=weights)


def same_bits(model, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


# Weights


class Tied(nn.Module):
    """Two names of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


def trained_from(weights, factory=STUDENT):
    """The student after one step of length 0."""
    still = StudentOptimization(steps=1, batch_size=24, learning_rate=1e-30, weight_decay=0.0)
    return direct(factory, still, weights).module.state_dict()


def test_first_weights_are_those_of_the_file_or_the_state_dict(tmp_path):
    torch.manual_seed(5)
    state = STUDENT().state_dict()
    save_file(state, tmp_path / "start.safetensors")
    for weights in (state, tmp_path / "start.safetensors", str(tmp_path / "start.safetensors")):
        start = trained_from(weights)
        assert all(torch.equal(start[name], value) for name, value in state.items())
    assert same_bits(direct(weights=state).module, direct(weights=tmp_path / "start.safetensors").module)
    assert not same_bits(direct(weights=state).module, direct().module)


def test_tied_weights_stand_once_in_a_file(tmp_path):
    state = Tied().state_dict()
    del state["second.weight"]
    save_file(state, tmp_path / "tied.safetensors")
    start = trained_from(tmp_path / "tied.safetensors", Tied)
    assert torch.equal(start["second.weight"], state["first.weight"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("1.bias"), r"missing: 1\.bias$"),
        (lambda s: s.update({"5.bias": torch.ones(3)}), r"not in the student: 5\.bias"),
        (
            lambda s: s.update({"3.bias": torch.ones(4)}),
            r"3\.bias is float32 \[4\], the student's float32 \[3\]$",
        ),
        (lambda s: s.update({"3.bias": torch.ones(3).half()}), r"3\.bias is float16 .*t\.float\(\)"),
        (
            lambda s: [s.update({f"net.{name}": s.pop(name)}) for name in list(s)],
            r"remove the prefix 'net\.'",
        ),
    ],
    ids=["missing", "left over", "shape", "dtype", "prefix"],
)
def test_weights_of_another_module_are_refused_by_name(change, match):
    state = dict(STUDENT().state_dict())
    change(state)
    with pytest.raises(ValueError, match=f"^weights: .*{match}"):
        direct(weights=state)


def test_files_that_could_run_code_and_other_things_are_no_weights(tmp_path):
    torch.save(STUDENT().state_dict(), tmp_path / "start.pt")
    with pytest.raises(ValueError, match=r"start\.pt is no safetensors file .*save_file"):
        direct(weights=tmp_path / "start.pt")
    with pytest.raises(ValueError, match="there is none at"):
        direct(weights=tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match=r"got MLP; pass its state_dict\(\)"):
        direct(weights=STUDENT())


# Outputs


@dataclass
class Answer:
    scores: Tensor
    loss: Tensor


Named = namedtuple("Named", ["hidden", "logits"])


class Kinds(nn.Module):
    """An MLP with outputs of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, STUDENT()

    def forward(self, x: Tensor):
        z = self.net(x)
        hidden, loss = x[:, :2] * 1.0, z.mean()
        return {
            "tensor": z,
            "tuple": (z, loss),
            "list": [loss, z],
            "named tuple": Named(hidden, z),
            "dict": {"hidden": hidden, "logits": z},
            "one of a dict": {"out": z, "loss": loss},
            "dataclass": Answer(z, loss),
            "object": SimpleNamespace(logits=z),
        }[self.kind]


KINDS = ["tuple", "list", "named tuple", "dict", "one of a dict", "dataclass", "object"]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind_train_the_same_student_and_predict_the_same(kind, tmp_path):
    plain = direct(partial(Kinds, kind="tensor"))
    trained = direct(partial(Kinds, kind=kind))
    assert same_bits(trained.module, plain.module)
    member = trained.member(factory=partial(Kinds, kind=kind))
    assert np.array_equal(member.predict_logits(X), plain.member().predict_logits(X))
    member.save(tmp_path)
    manifest = json.loads((tmp_path / "member.json").read_text())
    loaded = TorchMember.load(tmp_path, manifest, [f"{Kinds.__module__}.Kinds"])
    assert np.array_equal(loaded.predict_logits(X), member.predict_logits(X))


@pytest.mark.parametrize("way", ["stacked", "one_by_one"])
def test_members_with_several_outputs_are_trained_and_predict_like_others(way):
    x, short = X, SHORT.plain()
    logits = []
    for kind in ("tensor", "dict"):
        made = Ensemble.train(
            partial(Kinds, kind=kind), (x, Y), members=2, optimization=short, way=way, seed=0
        )
        logits.append(made.raw_logits(x))
    # A stack that predicts is one matrix product for all members, alone they are several.
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-6)


class Wrong(nn.Module):
    def __init__(self, outputs) -> None:
        super().__init__()
        self.net, self.outputs = STUDENT(), outputs

    def forward(self, x: Tensor):
        return self.outputs(self.net(x))


@pytest.mark.parametrize(
    ("outputs", "got"),
    [
        (lambda z: z[:, :2], r"got \[2, 2\]"),
        (lambda z: {"logits": z[:, :2]}, r"got \[2, 2\]"),
        (
            lambda z: (z, z * 2),
            r"got builtins.tuple with 2 tensors .*at 0 \[2, 3\], at 1 \[2, 3\]\): return the logits alone, or a dict",
        ),
        (lambda z: {"a": 1}, "got builtins.dict"),
        (lambda z: None, "got builtins.NoneType"),
    ],
    ids=["too few", "too few in a dict", "two", "no tensor", "nothing"],
)
def test_outputs_that_are_no_logits_of_the_classes_are_refused(outputs, got):
    with pytest.raises(ValueError, match=rf"model: Wrong: expected 3 outputs per sample.*{got}"):
        direct(lambda: Wrong(outputs))


def test_a_softmax_within_a_dict_is_found():
    with pytest.raises(ValueError, match="ends in a softmax"):
        direct(lambda: Wrong(lambda z: {"logits": z.softmax(-1)}))


def test_a_teacher_is_no_student():
    member = TorchMember(STUDENT(), name="one")
    for teacher in (member, Ensemble.from_members([member, TorchMember(STUDENT(), name="two")])):
        with pytest.raises(TypeError, match="factory: that's a teacher"):
            direct(teacher)
    with pytest.raises(TypeError, match="factory: that's a teacher"):
        direct(lambda: member)
    with pytest.raises(ValueError, match="the student"):
        direct(lambda: member.module)


# Activation checkpointing


class Blocks(nn.Module):
    """With dropout, and statistics that each forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        parts = [
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3)) for _ in range(3)
        ]
        self.blocks, self.head = nn.ModuleList(parts), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}], ids=["float32", "bf16"])
@pytest.mark.parametrize("optimization", [SHORT, ALL], ids=["whole", "parts"])
@pytest.mark.filterwarnings("ignore:BatchNorm")
def test_recomputed_modules_have_the_same_bits(settings, optimization):
    plain = direct(Blocks, optimization, **settings).module
    saved = direct(Blocks, optimization, recompute_modules="blocks.*", **settings).module
    assert same_bits(saved, plain)
    assert not any("forward" in vars(module) for module in saved.modules())
    assert int(saved.blocks[0][1].num_batches_tracked) == 40 * optimization.accumulate


def test_activations_are_computed_twice_and_fewer_are_kept():
    model, calls, kept = Blocks(), [], []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def passes(patterns):
        calls.clear()
        kept.clear()
        with recomputed(model, patterns), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(torch.from_numpy(X)).sum()
        loss.backward()
        return len(calls), sum(kept)

    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: calls.append(1))
    few = passes(["blocks.*"])
    many = passes([])
    assert (few[0], many[0]) == (6, 3)
    assert few[1] < many[1] / 3


def test_patterns_without_a_module_and_compile_beside_them_are_refused():
    with pytest.raises(
        ValueError, match=r"recompute_modules: 'layers\.\*' matches no module of Blocks; it has blocks,"
    ):
        direct(Blocks, recompute_modules=["layers.*"])
    with pytest.raises(TypeError, match="recompute_modules: expected patterns"):
        StudentTrainer(recompute_modules=3)
    with pytest.raises(ValueError, match="recompute_modules: not together with compile"):
        StudentTrainer(recompute_modules="blocks.*", compile=True)
    with pytest.raises(ValueError, match="sync_batch_norm: not together with compile"):
        StudentTrainer(sync_batch_norm=True, compile=True)
    with pytest.raises(TypeError, match="compile: expected True, False, or the name of a backend; got 1"):
        StudentTrainer(compile=1)


# Compiled


def counted(monkeypatch):
    """Count the graphs that torch.compile gets of a training; they run as they are."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, backend: whole(model, backend=counting))
    counting = backend
    return graphs


def test_a_compiled_student_is_the_plain_module_with_the_same_bits(monkeypatch):
    plain = direct(Blocks)
    graphs = counted(monkeypatch)
    compiled = direct(Blocks, compile=True)
    assert len(graphs) == 1
    assert type(compiled.module) is Blocks
    assert same_bits(compiled.module, plain.module)
    assert np.array_equal(compiled.losses, plain.losses)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="compile: 'nonsense'"):
        direct(compile="nonsense")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.filterwarnings("ignore:BatchNorm")
def test_inductor_trains_the_same_student_up_to_rounding(precision):
    class NoDropout(Blocks):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                block[3] = nn.Identity()

    # A bias before BatchNorm has no gradient but the rounding errors, which AdamW scales to whole steps.
    settings = replace(ALL, steps=5, optimizer=torch.optim.SGD)
    plain = direct(NoDropout, settings, mixed_precision=precision)
    compiled = direct(NoDropout, settings, mixed_precision=precision, compile=True)
    loose = 1e-5 if precision == "no" else 2e-3
    for got, want in zip(compiled.module.parameters(), plain.module.parameters(), strict=True):
        torch.testing.assert_close(got, want, atol=loose, rtol=loose)


# Everything together


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16", "recompute_modules": "blocks.*", "ema": 0.9},
        {"mixed_precision": "bf16", "compile": "eager", "ema": 0.9},
    ],
    ids=["recomputed", "compiled"],
)
@pytest.mark.filterwarnings("ignore:BatchNorm")
def test_a_resumed_training_with_every_setting_has_the_same_bits(settings, tmp_path):
    trainer, file = StudentTrainer(ALL, **settings), tmp_path / "checkpoint.safetensors"
    weights = Blocks().state_dict()

    def kill(done, total):
        if done == 32:
            raise Killed

    def train(**more):
        return trainer.direct(Blocks, ROWS, classes=3, weights=weights, **more).module

    with pytest.raises(Killed):
        train(checkpoint=file, checkpoint_every=1, progress=kill)
    done = []
    resumed = train(checkpoint=file, progress=lambda d, t: done.append(d))
    assert done == [40]
    assert same_bits(resumed, train())
