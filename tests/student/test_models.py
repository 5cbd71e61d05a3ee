"""The example networks, their augmentation and their description."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.cli.classes import parse
from ensdistill.common.describe import build_module, describe, module_recipe
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Mixup, TransferSet
from ensdistill.models import CNN, MLP
from ensdistill.teachers.recipes import Recipe, SklearnMembers


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (MLP(64, [64], 10), 64 * 64 + 64 + 64 * 10 + 10),
        (MLP(64, [], 10), 650),
        (CNN([8, 16], [1, 8, 8], outputs=10), 80 + 8 * 16 * 9 + 16 + 64 * 10 + 10),
        (CNN([[8, 16]], [1, 8, 8], hidden=[64], dropout=0.3), 80 + 1168 + 256 * 64 + 64 + 650),
        (CNN([4], [3, 9, 7], outputs=5), 3 * 4 * 9 + 4 + 4 * 4 * 3 * 5 + 5),
    ],
)
def test_parameters_and_outputs(module, parameters):
    assert count(module) == parameters
    image = (3, 9, 7) if parameters == 357 else (1, 8, 8)
    assert module(torch.zeros(2, *image)).shape == (2, 5 if parameters == 357 else 10)


def test_the_activation_is_the_given_one():
    for name, kind in (("relu", "ReLU"), ("silu", "SiLU"), ("gelu", "GELU"), ("tanh", "Tanh")):
        for module in (MLP(hidden=[8, 8], activation=name), CNN([4], hidden=[8], activation=name)):
            assert [type(m).__name__ for m in module].count(kind) == 2
    with pytest.raises(ValueError, match="activation: expected one of relu, gelu, silu, tanh; got 'swish'"):
        MLP(activation="swish")


def test_the_pooling_is_the_given_one():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    for name, expected in (("max", [[5.0, 7.0], [13.0, 15.0]]), ("average", [[2.5, 4.5], [10.5, 12.5]])):
        pooled = next(
            m for m in CNN([4], pooling=name) if isinstance(m, (torch.nn.MaxPool2d, torch.nn.AvgPool2d))
        )(image)
        assert pooled.tolist() == [[expected]]
    with pytest.raises(ValueError, match="pooling: expected one of max, average; got 'mean'"):
        CNN(pooling="mean")


def test_dropout_is_where_it_should_be():
    kinds = [type(m).__name__ for m in CNN([[8, 16]], hidden=[64], dropout=0.3)]
    assert kinds == [
        "Conv2d",
        "ReLU",
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Dropout",
        "Flatten",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert not any(isinstance(m, nn.Dropout) for m in CNN([8]))


def test_image_too_small():
    with pytest.raises(ValueError, match="8x8 pixels are too few for 4 stages"):
        CNN([2, 2, 2, 2])


@pytest.mark.parametrize("diagonal", [True, False])
def test_shifts_against_slices(diagonal):
    shift = ShiftImages(2, diagonal=diagonal)
    rng = np.random.default_rng(0)
    x = torch.rand(200, 3, 5, 7)
    draws = shift.draw(200, rng)
    out = shift.apply(x, torch.from_numpy(draws))
    assert len({tuple(d) for d in draws}) == (25 if diagonal else 9)
    for image, shifted, (down, right) in zip(x, out, draws, strict=True):
        expected = torch.zeros(3, 5, 7)
        expected[:, max(down, 0) : 5 + min(down, 0), max(right, 0) : 7 + min(right, 0)] = image[
            :, max(-down, 0) : 5 - max(down, 0), max(-right, 0) : 7 - max(right, 0)
        ]
        assert torch.equal(shifted, expected)


def test_variants_start_with_the_unchanged_and_differ():
    x = np.random.default_rng(0).random((2, 1, 3, 3), np.float32) + 1
    variants = ShiftImages(1, diagonal=False).variants(x)
    np.testing.assert_array_equal(variants[0], x)
    assert len({v.tobytes() for v in variants}) == 5
    np.testing.assert_array_equal(variants[1][:, :, :-1], x[:, :, 1:])  # one pixel up


def test_shift_refuses_inputs_that_are_no_images():
    with pytest.raises(ValueError, match=r"images .* got \[4, 64\]"):
        ShiftImages(1).apply(torch.zeros(4, 64), torch.zeros(4, 2, dtype=torch.int64))


def test_recipe_builds_the_same_architecture():
    recipe = module_recipe(functools.partial(CNN, channels=[[4, 6]], hidden=[5], dropout=0.2))
    assert recipe == {
        "class_path": "ensdistill.models.CNN",
        "init_args": {"channels": [[4, 6]], "hidden": [5], "dropout": 0.2},
    }
    assert repr(build_module(recipe)) == repr(CNN([[4, 6]], hidden=[5], dropout=0.2))
    assert module_recipe(lambda: MLP()) is None
    assert module_recipe(functools.partial(nn.Sequential, nn.ReLU())) is None


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "ensdistill.common.describe.build_module",
        "torch.nn.Module.__init_subclass__",
    ],
)
def test_building_something_else_is_refused(path, monkeypatch):
    with pytest.raises(ValueError, match=r"not trusted|cannot be imported|expected a subclass"):
        build_module({"class_path": path, "init_args": {}})


def test_trust_does_not_make_a_function_a_module():
    with pytest.raises(ValueError, match=r"expected a subclass of torch\.nn\.Module"):
        build_module({"class_path": "os.getcwd", "init_args": {}}, trusted=["os.getcwd"])


OWN = """
from dataclasses import dataclass
from sklearn.base import BaseEstimator
from their_base import Base

class Estimator(BaseEstimator):
    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return {word}

class Heir(Base):
    pass

@dataclass
class Augmentation:
    pixels: int = 1

    def apply(self, x):
        return {word}

def function(x):
    return {word}
"""
BASE = "class Base:\n    answer = {word}\n    def get_params(self, deep=True):\n        return {{}}\n"
USES = {
    "estimator": lambda own: own.Estimator(),
    "member": lambda own: SklearnMembers(own.Estimator()),
    "dataclass": lambda own: own.Augmentation(),
    "nested": lambda own: Mixup(rows=3, augment=own.Augmentation()),
    "function": lambda own: own.function,
    "partial": lambda own: functools.partial(own.function, x=1),
    "class": lambda own: own.Augmentation,
}


@pytest.mark.parametrize("use", USES)
def test_an_edited_class_is_described_as_another(module_of, use):
    module_of(BASE.format(word="1"), "their_base")
    before, same, edited = (
        describe(USES[use](module_of(OWN.format(word=word)))) for word in ("x", "x", "x + 1")
    )
    assert before == same != edited


def test_an_edited_base_in_another_file(module_of):
    described = []
    for word in ("1", "1", "2"):
        module_of(BASE.format(word=word), "their_base")
        described.append(describe(module_of(OWN.format(word="x")).Heir()))
    assert described[0] == described[1] != described[2]


def test_describe_refuses_modules_that_it_cannot_read():
    with pytest.raises(TypeError, match=r"got .*Event"):
        describe({"stream": __import__("threading").Event()})


def test_specs_come_from_a_config():
    members = [
        {
            "class_path": "ensdistill.teachers.recipes.TorchMembers",
            "init_args": {
                "name": "cnn",
                "model": {
                    "class_path": "ensdistill.models.CNN",
                    "init_args": {"channels": [[8, 16]], "hidden": [64], "dropout": 0.3},
                },
                "optimization": {"steps": 500, "batch_size": 32, "schedule": "cosine"},
                "augment": {
                    "class_path": "ensdistill.data.augmentation.ShiftImages",
                    "init_args": {"pixels": 1},
                },
            },
        },
        {
            "class_path": "ensdistill.teachers.recipes.SklearnMembers",
            "init_args": {
                "estimator": {"class_path": "sklearn.svm.SVC", "init_args": {"C": 3.0}},
                "output": "decision",
            },
        },
    ]
    synthetic = [
        {"class_path": "ensdistill.data.transfer.Munge", "init_args": {"rows": 10, "probability": 0.3}}
    ]
    cnn, svc = parse(list[Recipe], members)
    transfer = parse(TransferSet, {"pool": True, "synthetic": synthetic})
    assert (cnn.optimization.steps, cnn.augment, cnn.trusted) == (
        500,
        ShiftImages(1),
        ("ensdistill.models.CNN",),
    )
    assert count(cnn.model()) == 18346
    assert module_recipe(cnn.model)["init_args"]["channels"] == [[8, 16]]
    assert (svc.estimator.C, svc.name) == (3.0, "svc")
    assert transfer.synthetic[0].probability == 0.3
    assert describe(cnn) == describe(parse(list[Recipe], members)[0])
