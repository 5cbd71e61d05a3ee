"""Adapters: their logits, and their errors."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC
from torch import nn

from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import (
    ArrayMember,
    CallableMember,
    SklearnMember,
    TorchMember,
    as_member,
    load_member,
    to_logits,
)


@pytest.fixture(scope="module")
def rows(digits):
    return digits.labelled.inputs.reshape(200, -1), digits.labelled.labels


def test_torch_member_predicts_in_eval_mode_and_gives_modes_back(digits):
    module = CNN([[4]], dropout=0.5).train()
    module[0].eval()
    modes = [m.training for m in module.modules()]
    member = TorchMember(module, batch_size=64)
    a, b = member.predict_logits(digits.test.inputs), member.predict_logits(digits.test.inputs)
    np.testing.assert_array_equal(a, b)  # no dropout
    assert [m.training for m in module.modules()] == modes
    assert (a.dtype, a.shape) == (np.float32, (697, 10))
    with torch.no_grad():
        np.testing.assert_allclose(
            a, module.eval()(torch.from_numpy(digits.test.inputs)).numpy(), atol=1e-6
        )  # batches
    assert member.parameters == 4 * 9 + 4 + 64 * 10 + 10
    assert member.bytes == 4 * member.parameters


def test_modes_come_back_after_an_error():
    module = MLP(64).train()
    with pytest.raises(ValueError, match=r"inputs: module: .* of shape \[2, 3\]"):
        TorchMember(module).predict_logits(np.zeros((2, 3), np.float32))
    assert module.training


def test_probabilities_become_logits_that_give_them_back(digits, rows):
    forest = RandomForestClassifier(20, random_state=0).fit(*rows)
    p = forest.predict_proba(digits.test.inputs.reshape(697, -1))
    assert (p == 0).any()
    logits = SklearnMember(forest, smoothing=1e-3).predict_logits(digits.test.inputs)
    np.testing.assert_allclose(softmax(logits.astype(float), -1), (p + 1e-3) / 1.01, atol=1e-6)
    assert np.isfinite(logits).all()


def test_decision_function_binary_margin_and_regression(digits, rows):
    x, y = rows
    svc = SVC().fit(x, y)
    member = SklearnMember(svc)
    assert member.output == "decision"
    np.testing.assert_allclose(
        member.predict_logits(digits.test.inputs),
        svc.decision_function(digits.test.inputs.reshape(697, -1)),
        rtol=1e-6,
    )
    two = SVC().fit(x[y < 2], y[y < 2])
    z = SklearnMember(two).predict_logits(x[y < 2])
    np.testing.assert_allclose(
        z[:, 1] - z[:, 0], two.decision_function(x[y < 2].astype(np.float64)), rtol=1e-5
    )
    ridge = KernelRidge(kernel="rbf", gamma=0.1).fit(x, 2 * np.eye(10)[y] - 1)
    z = SklearnMember(ridge, classes=digits.classes).predict_logits(digits.test.inputs)
    assert (z.argmax(1) == digits.test.labels).mean() > 0.9


def test_classes_are_aligned_by_name(rows):
    x, y = rows
    names = np.array(["zebra", "ant", "mouse"])
    keep = y < 3
    model = LinearDiscriminantAnalysis().fit(
        x[keep] + np.random.default_rng(0).normal(0, 1e-3, x[keep].shape), names[y[keep]]
    )
    member = SklearnMember(model, classes=list(names))  # classes_ are sorted: ant, mouse, zebra
    assert member.classes == ("zebra", "ant", "mouse")
    assert (member.predict_logits(x[keep]).argmax(1) == y[keep]).mean() > 0.95
    assert SklearnMember(model).classes == ("ant", "mouse", "zebra")
    with pytest.raises(
        ValueError, match=r"has \['ant', 'mouse', 'zebra'\]; expected \['zebra', 'ant', 'cow'\]"
    ):
        SklearnMember(model, classes=["zebra", "ant", "cow"])


@pytest.mark.parametrize(
    ("known", "named"), [([0, 1, 2], True), ([0, 1, 2], False), ([3, 5, 9], True), ([False, True], True)]
)
def test_classes_that_are_no_strings_are_names_too(known, named):
    """In another order, as strings and as they are; integers 0..C-1 are indices where no name is one
    of them."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    labels = np.array(known)[x[:, : len(known)].argmax(1)]
    estimator = LinearDiscriminantAnalysis().fit(x, labels)
    expected = estimator.predict_proba(x)
    for order in (
        ([*map(str, known)], [*map(str, known)][::-1], estimator.classes_[::-1])
        if named
        else (["a", "b", "c"],)
    ):
        ensemble = Ensemble.from_members([estimator], classes=order)
        assert ensemble.classes == tuple(map(str, order))
        columns = [list(map(str, known)).index(name) for name in ensemble.classes] if named else [0, 1, 2]
        np.testing.assert_allclose(ensemble.predict_proba(x), expected[:, columns], atol=1e-5)
    with pytest.raises(ValueError, match=r"classes: .*: expected different names; 'a' stands 2 times"):
        SklearnMember(estimator, classes=["a", "a", "b"])


def test_a_regressor_of_one_column_has_no_logits(rows):
    with pytest.raises(
        ValueError, match="kernelridge: expected a regressor that was fitted to one column for each class"
    ):
        SklearnMember(KernelRidge().fit(rows[0], rows[1])).predict_logits(rows[0])


def test_nothing_is_learned_of_a_nan():
    answers = [np.array([[0.9, 0.1], [np.nan, 0.5]]), np.array([[0.9, 0.1]])]
    member = CallableMember(lambda x: answers.pop(0), name="f")
    assert np.isnan(member.predict_logits(np.zeros((2, 1)))).any()
    np.testing.assert_allclose(softmax(member.predict_logits(np.zeros((1, 1))), -1), [[0.9, 0.1]], atol=1e-5)


def test_an_error_of_a_members_own_has_the_members_name():
    with pytest.raises(ValueError, match=r"inputs: odd: .* no inputs of shape \[5, 4\]") as caught:
        Ensemble.from_members([TorchMember(nn.Linear(3, 2), name="odd")]).predict_logits(
            np.zeros((5, 4), np.float32)
        )
    assert caught.value.__notes__ == ["(while odd predicted 5 rows)"]
    with pytest.raises(ValueError, match=r"inputs: odd: .* no inputs of shape \[5, 4\]") as caught:
        Ensemble.from_members([TorchMember(nn.Linear(3, 2), name="odd")]).seconds(
            np.zeros((5, 4), np.float32)
        )
    assert caught.value.__notes__ == ["(while odd predicted 5 rows)"]


def test_integer_classes_are_indices(digits, rows):
    member = SklearnMember(SVC().fit(*rows), classes=[f"digit {i}" for i in range(10)])
    assert (member.predict_logits(digits.test.inputs).argmax(1) == digits.test.labels).mean() > 0.9
    with pytest.raises(ValueError, match=r"classes: svc has \[0, 1, 2.*expected \['a', 'b'\]"):
        SklearnMember(SVC().fit(*rows), classes=["a", "b"])


def test_unfit_estimators_and_missing_outputs(rows):
    with pytest.raises(ValueError, match="svc is not fitted"):
        SklearnMember(SVC())
    with pytest.raises(ValueError, match="output: svc has no predict_proba"):
        SklearnMember(SVC().fit(*rows), output="probability")


def test_to_logits_refuses_logits():
    with pytest.raises(ValueError, match=r"row 1 is \[-2.0, 3.0\]"):
        to_logits(np.array([[0.5, 0.5], [-2.0, 3.0]]))
    with pytest.raises(ValueError, match="row 0"):
        to_logits(np.array([[np.nan, 0.5]]))


def test_array_member_finds_rows_by_content():
    x = np.random.default_rng(0).normal(size=(20, 3))
    z = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    member = ArrayMember(x, logits=z, name="known")
    order = np.random.default_rng(2).permutation(20)[:7]
    np.testing.assert_array_equal(member.predict_logits(x[order]), z[order])
    with pytest.raises(ValueError, match=r"known has no output for row 1 \(1 such rows\)"):
        member.predict_logits(np.stack([x[0], x[1] + 1]))
    with pytest.raises(ValueError, match="rows 0 and 1 are equal but have different outputs"):
        ArrayMember(np.zeros((2, 3)), logits=z[:2], name="known")
    with pytest.raises(ValueError, match="expected one of the two"):
        ArrayMember(x, name="known")


def test_callable_member():
    member = CallableMember(
        lambda x: torch.softmax(torch.from_numpy(x), -1), name="soft", version="1", output="probabilities"
    )
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        softmax(member.predict_logits(x), -1), softmax(x, -1), atol=1e-5
    )  # the smoothing moves by 3e-6
    with pytest.raises(ValueError, match=r"short: expected outputs \[5, C\]"):
        CallableMember(lambda x: x[:2], name="short", version="1", output="logits").predict_logits(x)


def test_a_bare_function_is_listened_to():
    x = np.random.default_rng(0).normal(size=(6, 3))
    member = as_member(lambda x: softmax(x, -1))
    assert member.predict_logits(x[:0]).shape == (0, 3)  # no row decides nothing
    np.testing.assert_allclose(softmax(member.predict_logits(x), -1), softmax(x, -1), atol=1e-5)
    raw = as_member(lambda x: x)
    np.testing.assert_array_equal(raw.predict_logits(x), x.astype(np.float32))
    two_faced = as_member(lambda x: softmax(x, -1) if len(x) > 2 else x, "two")
    two_faced.predict_logits(x)
    with pytest.raises(
        ValueError, match=r"two: the first outputs looked like probabilities, but now row 0 .*output='logits'"
    ):
        two_faced.predict_logits(x[:2])
    with pytest.raises(ValueError, match=r"two: a function has no fingerprint.*version='1'"):
        two_faced.fingerprint()


def test_a_bare_array_is_logits_or_probabilities(tmp_path):
    z = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    logits, probabilities = as_member(z, "z"), as_member(torch.from_numpy(softmax(z, -1)), "p")
    np.testing.assert_array_equal(logits.predict_logits(np.zeros((6, 2))), z)
    np.testing.assert_allclose(
        softmax(probabilities.predict_logits(np.zeros((6, 2))), -1), softmax(z, -1), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"z holds outputs for 6 rows by their place; got 5 rows"):
        logits.predict_logits(np.zeros((5, 2)))
    logits.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(np.zeros((6, 2))), z)
    with pytest.raises(
        ValueError, match=r"ndarray: expected logits or probabilities \[N, C\]; got float64 \[3\]"
    ):
        as_member(np.zeros(3))


def test_anything_else_is_no_member():
    with pytest.raises(TypeError, match=r"members: expected a member, a torch module.*; got builtins\.dict"):
        as_member({})
    with pytest.raises(TypeError, match=r"got builtins\.type"):
        as_member(MLP)


class Hungry(nn.Module):
    """Runs out of memory at more than ``room`` rows."""

    def __init__(self, room):
        super().__init__()
        self.room, self.seen, self.layer = room, [], nn.Linear(3, 2)

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.layer(x)


def test_short_memory_halves_the_batch_and_in_the_end_names_the_member():
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    roomy, tight = Hungry(100), Hungry(3)
    tight.load_state_dict(roomy.state_dict())
    # The rounding of a matrix product depends on how many rows it has.
    np.testing.assert_allclose(
        TorchMember(tight).predict_logits(x), TorchMember(roomy).predict_logits(x), atol=1e-6
    )
    assert max(s for s in tight.seen if s <= 3) == 3
    assert len(tight.seen) < 12  # halves, not one row less at a time
    hopeless = Hungry(0).train()
    with pytest.raises(MemoryError, match=r"big: out of memory on cpu with a single row .* device='cpu'"):
        TorchMember(hopeless, name="big").predict_logits(x)
    assert hopeless.training


class Greedy(nn.Module):
    """Allocates a PiB and more for every row beyond ``room``."""

    def __init__(self, room=0):
        super().__init__()
        self.room, self.layer = room, nn.Linear(3, 2)

    def forward(self, x):
        if len(x) > self.room:
            torch.empty(2**50 * len(x))
        return self.layer(x)


def test_a_real_shortage_is_recognised():
    x = np.ones((5, 3), np.float32)
    assert TorchMember(Greedy(2)).predict_logits(x).shape == (5, 2)
    with pytest.raises(
        MemoryError, match=r"^big: out of memory on cpu with a single row .*can't allocate memory"
    ):
        Ensemble.from_members([TorchMember(Greedy(), name="big")]).predict_logits(x)
    for hungry in (lambda x: torch.empty(2**50), lambda x: np.ones(2**55)):
        with pytest.raises(MemoryError, match=r"^much: out of memory with 5 rows .*; give it fewer at once"):
            Ensemble.from_members([CallableMember(hungry, name="much")]).predict_logits(x)


def test_a_module_visits_its_device_and_comes_back():
    visited = []

    class Traveller(nn.Linear):
        def to(self, device):
            visited.append(torch.device(device).type)
            return self  # there is one device here: the test looks at the itinerary

    member = TorchMember(Traveller(3, 2), device="cpu")
    member.predict_logits(np.zeros((2, 3), np.float32))
    assert visited == []
    member.device = torch.device("meta")
    with pytest.raises(Exception):  # noqa: B017, PT011 (parameters at home, inputs abroad)
        member.predict_logits(np.zeros((2, 3), np.float32))
    assert visited == ["meta", "cpu"]


class Classifier(nn.Module):
    """As Hugging Face's: a config, an attention mask, an output with logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.config = type("Config", (), {"pad_token_id": 0, "id2label": {0: "no", 1: "maybe", 2: "yes"}})()

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (self.embed(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return type("Output", (), {"logits": self.head(mean)})()


class Nothing(nn.Module):
    def forward(self, x):
        return {}


def test_models_that_return_logits_are_masked_and_know_their_classes():
    member = TorchMember(Classifier())
    assert member.classes == ("no", "maybe", "yes")
    short, padded = np.array([[3, 5]]), np.array([[3, 5, 0, 0]])
    np.testing.assert_allclose(member.predict_logits(padded), member.predict_logits(short), atol=1e-6)
    other = TorchMember(member.module, classes=["yes", "no", "maybe"])
    np.testing.assert_array_equal(other.predict_logits(short), member.predict_logits(short)[:, [2, 0, 1]])
    with pytest.raises(
        ValueError, match=r"module has \['no', 'maybe', 'yes'\]; expected \['yes', 'no', 'perhaps'\]"
    ):
        TorchMember(member.module, classes=["yes", "no", "perhaps"])
    with pytest.raises(ValueError, match="expects float32, or integers for a model of tokens; got float64"):
        member.predict_logits(np.zeros((1, 2)))
    # A recurrent network's first output is that of each step, and no logits of a row.
    with pytest.raises(
        ValueError, match=r"odd: expected outputs \[1, C\], one for each class; got \[1, 2, 2\]"
    ):
        TorchMember(nn.LSTM(3, 2), name="odd").predict_logits(np.zeros((1, 2, 3), np.float32))
    with pytest.raises(
        TypeError,
        match=r"odd: expected a module that returns a tensor, or an object with \.logits; got builtins\.dict",
    ):
        TorchMember(Nothing(), name="odd").predict_logits(np.zeros((1, 3), np.float32))


class _Convolution(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.last, self.how, self.strides = nn.Conv2d(2, 4, 3), nn.Linear(64, 3), how, []

    def forward(self, x):
        x = self.first(x)
        self.strides.append(x.stride(1))
        if self.how == "assert":
            assert x.is_contiguous()
        if self.how == "strides":  # as a kernel that ignores strides
            return self.last(x.as_strided((len(x), 64), (64, 1)))
        return self.last(x.view(len(x), -1) if self.how == "view" else x.flatten(1))


@pytest.mark.parametrize("how", ["flatten", "view", "assert", "strides"])
def test_convolutions_predict_with_channels_innermost_where_they_can(how):
    module = _Convolution(how)
    x = np.random.default_rng(0).normal(size=(5, 2, 6, 6)).astype(np.float32)
    member = TorchMember(module)
    found = member.predict_logits(x)
    np.testing.assert_array_equal(member.predict_logits(x), found)
    later = 1 if how == "flatten" else 16
    assert module.strides == [
        16,
        16,
        1,
        later,
        later,
    ]  # how it ends, and both layouts, are tried once, on the first rows
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)
