"""Kinds of a member's outputs: stated, shown by how a module ends or by the values; where two readings are
possible, an error."""

import copy
import functools

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ensdistill.data import Rows
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import (
    ArrayMember,
    CallableMember,
    SklearnMember,
    TorchMember,
    as_member,
    load_member,
)
from ensdistill.teachers.members.outputs import as_logits, reading_of

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


class Ends(nn.Module):
    def __init__(self, end=lambda z: z, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.end = nn.Linear(6, outputs), end
        nn.init.normal_(self.layer.weight, std=2)

    def forward(self, x):
        return self.end(self.layer(x))


def by_hand(z):
    e = z.exp()
    return e / e.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            by_hand,
            r"output: net: .*all rows of this one's outputs are probabilities.*output='probabilities'\), or "
            r"output='logits'",
        ),
        (
            lambda z: by_hand(z).round(decimals=2),
            "output: net: its outputs could be logits, or probabilities",
        ),
        (
            lambda z: 100 * by_hand(z),
            "output: net: .*percentages or votes, because all rows sum to 100; divide",
        ),
        (torch.sigmoid, "output: net: the module ends in a sigmoid"),
        (lambda z: 1 / (1 + (-z).exp()), r"output: net: .*of each class by itself \(sigmoids\)"),
    ],
)
def test_a_module_whose_outputs_could_be_probabilities_is_refused_until_stated(end, words):
    with pytest.raises(ValueError, match=words):
        Ensemble.from_members([TorchMember(Ends(end), name="net")]).predict_proba(X)
    z = end(Ends().layer(torch.from_numpy(X))).detach().numpy()
    np.testing.assert_array_equal(TorchMember(Ends(end), output="logits").predict_logits(X), z)


@pytest.mark.parametrize(
    "end",
    [
        nn.Softmax(-1),
        nn.Softmax(1),
        lambda z: z.softmax(-1).double().float(),
        lambda z: z[None].softmax(-1)[0],
    ],
)
def test_a_module_that_ends_in_a_softmax_returns_probabilities(end, tmp_path):
    right = softmax(Ends().layer(torch.from_numpy(X)).detach().double().numpy(), -1)
    for member in (TorchMember(Ends(end)), TorchMember(Ends(end), output="probabilities")):
        np.testing.assert_allclose(softmax(member.predict_logits(X[:1]), -1), right[:1], atol=1e-5)
        np.testing.assert_allclose(softmax(member.predict_logits(X), -1), right, atol=1e-5)
        np.testing.assert_array_equal(member.predict_tensor(X).numpy(), member.predict_logits(X))
    ensemble = Ensemble.from_members([Ends(end), Ends(end)])
    np.testing.assert_allclose(ensemble.combine(ensemble.predict_logits(X, way="stacked")), right, atol=1e-5)


def test_a_softmax_over_the_rows_or_within_the_module_is_no_reason():
    inside = nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 3))
    with torch.no_grad():
        np.testing.assert_array_equal(
            TorchMember(inside).predict_logits(X), inside(torch.from_numpy(X)).numpy()
        )


def test_a_stated_output_is_saved_and_part_of_the_fingerprint(tmp_path):
    net = MLP(6, [], 1)
    factory = functools.partial(MLP, inputs=6, hidden=[], outputs=1)
    margin = TorchMember(net, name="net", factory=factory, output="margin", classes=["no", "yes"])
    with torch.no_grad():
        p = torch.sigmoid(net(torch.from_numpy(X)))[:, 0].numpy()
    np.testing.assert_allclose(softmax(margin.predict_logits(X), -1)[:, 1], p, atol=1e-6)
    margin.save(tmp_path)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_logits(X), margin.predict_logits(X))
    assert (
        loaded.fingerprint()
        == margin.fingerprint()
        != TorchMember(net, factory=factory, classes=["no", "yes"]).fingerprint()
    )
    swapped = TorchMember(net, name="net", factory=factory, output="margin", classes=["yes", "no"])
    assert swapped.fingerprint() != margin.fingerprint()
    with pytest.raises(ValueError, match=r"output: net: expected one of auto, logits, .*got 'margins'"):
        TorchMember(net, name="net", output="margins")


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(6, 1), lambda: Ends(torch.sigmoid, 1), lambda: X[:, :1], lambda: lambda x: x[:, :1]],
)
def test_one_column_is_refused_until_stated(make):
    with pytest.raises(ValueError, match=r"output: .*(one output column is no logits|ends in a sigmoid)"):
        Ensemble.from_members([make()]).predict_proba(X)


def test_one_column_that_is_stated():
    z = X[:, 0].astype(np.float64)
    right = 1 / (1 + np.exp(-z))
    for given in (z, z[:, None], lambda x: z, lambda x: torch.from_numpy(z[:, None])):
        np.testing.assert_allclose(
            Ensemble.from_members([given], output="margin").predict_proba(X)[:, 1], right, atol=1e-6
        )
    for given in (right, right[:, None], lambda x: right):
        np.testing.assert_allclose(
            Ensemble.from_members([given], output="probabilities").predict_proba(X)[:, 1], right, atol=1e-5
        )
    np.testing.assert_allclose(
        softmax(ArrayMember(name="a", probabilities=right[:, None]).logits, -1)[:, 1], right, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"output: m: expected one column, the binary margin; got \[40, 6\]"):
        as_member(X, "m", output="margin")


P = softmax(np.random.default_rng(1).normal(size=(30, 3)) * 2, -1)
ONE_BAD = np.where(np.arange(30)[:, None] == 7, 0.0, P)


@pytest.mark.parametrize(
    "values",
    [
        P.round(2),
        torch.from_numpy(P).bfloat16().float().numpy(),
        ONE_BAD,
        np.where(ONE_BAD == 0, -1.0, P),
        100 * P,
        np.random.default_rng(2).multinomial(37, P).astype(float),
        np.random.default_rng(2).uniform(size=(30, 3)),
    ],
)
def test_values_of_two_readings_are_refused_until_stated(values):
    for make in (
        lambda **o: as_member(values, "m", **o),
        lambda **o: CallableMember(lambda x: values, name="m", version="1", **o),
    ):
        with pytest.raises(
            ValueError, match=r"output: m: its outputs could be logits, or p.*output='probabilities'"
        ):
            make().predict_logits(X[:30])
        np.testing.assert_allclose(make(output="logits").predict_logits(X[:30]), values, rtol=1e-6)


def test_probabilities_that_are_stated_may_be_rounded_but_not_wrong():
    told = as_member(P.round(2), "m", output="probabilities")
    np.testing.assert_allclose(softmax(told.predict_logits(X[:30]), -1), P, atol=0.01)
    with pytest.raises(ValueError, match=r"row 7 is \[0\.0, 0\.0, 0\.0\] \(1 such rows\)"):
        as_member(ONE_BAD, "m", output="probabilities")
    with pytest.raises(ValueError, match="rows that are at least 0 and sum to 1; row 0"):
        as_logits("m", np.log(P) + 1, "log_probabilities")
    np.testing.assert_allclose(as_logits("m", np.log(P), "log_probabilities"), np.log(P), rtol=1e-6)


def test_true_logits_are_no_reason():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 30):
        for classes in (2, 3, 50):
            assert reading_of("m", rng.normal(size=(200, classes)) * scale) == "logits"
    assert (
        reading_of("m", 4 * np.eye(3)) == "logits"
    )  # as made of labels: votes are not unanimous in every row
    assert reading_of("m", np.zeros((5, 3))) == "logits"  # as a stand-in for a model may return
    assert reading_of("m", np.full((2, 3), np.nan)) is None


def named_model(wrapper, **config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return wrapper(
        transformers.BertForSequenceClassification(
            transformers.BertConfig(**small, initializer_range=0.5, **config)
        )
    )


@pytest.mark.parametrize(
    "wrapper", [nn.DataParallel, AveragedModel, functools.partial(torch.compile, backend="eager")]
)
def test_padding_and_class_names_are_found_within_a_wrapper(tmp_path, wrapper):
    named = {"id2label": {0: "bad", 1: "good"}}
    bare, member = (
        TorchMember(named_model(lambda m: m, **named)),
        TorchMember(named_model(wrapper, **named), name="bert"),
    )
    tokens = np.random.default_rng(0).integers(1, 30, (5, 9))
    tokens[:, 4:] = 0
    np.testing.assert_allclose(member.predict_logits(tokens), bare.predict_logits(tokens[:, :4]), atol=1e-5)
    assert (member.classes, member.fingerprint()) == (("bad", "good"), bare.fingerprint())
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(tokens), member.predict_logits(tokens))


def test_models_of_other_tasks_are_refused():
    same = lambda m: m  # noqa: E731
    for wrapper in (same, nn.DataParallel):
        with pytest.raises(
            ValueError, match=r"module: bert: .*problem_type='multi_label_classification'.*sigmoid"
        ):
            TorchMember(
                named_model(wrapper, num_labels=3, problem_type="multi_label_classification"),
                name="bert",
                output="logits",
            )
        with pytest.raises(ValueError, match=r"module: bert: .*num_labels=1.*output='margin'"):
            TorchMember(named_model(wrapper, num_labels=1), name="bert")
    with pytest.raises(ValueError, match="problem_type='regression'"):
        TorchMember(named_model(same, num_labels=3, problem_type="regression"), name="bert")
    told = TorchMember(
        named_model(same, num_labels=1, id2label={0: "score"}), output="margin", classes=["no", "yes"]
    )
    tokens = np.random.default_rng(0).integers(1, 30, (5, 9))
    with torch.no_grad():
        z = told.module.eval()(torch.from_numpy(tokens)).logits[:, 0].double()
    np.testing.assert_allclose(
        softmax(told.predict_logits(tokens), -1)[:, 1], torch.sigmoid(z).numpy(), atol=1e-5
    )


def test_lazy_modules_are_refused_until_they_are_initialised(tmp_path):
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 3))
    with pytest.raises(
        ValueError,
        match=r"module: net: expected initialised parameters; 0\.weight, 0\.bias, 1\.weight \.\.\. of a lazy",
    ):
        TorchMember(lazy, name="net")
    lazy(torch.ones(2, 6))
    assert TorchMember(lazy, name="net").predict_logits(X).shape == (40, 3)
    layer = nn.LazyLinear(3)
    layer(torch.ones(2, 6))
    with pytest.raises(
        ValueError, match="factory: net: expected initialised parameters; weight, bias of a lazy"
    ):
        TorchMember(layer, name="net", factory=functools.partial(nn.LazyLinear, out_features=3)).save(
            tmp_path
        )


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules_predict_and_are_not_saved(tmp_path):
    net = MLP(6, [8], 3)
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    member = TorchMember(small, name="net", factory=functools.partial(MLP, inputs=6, hidden=[8], outputs=3))
    with torch.no_grad():
        np.testing.assert_array_equal(member.predict_logits(X), small(torch.from_numpy(X)).numpy())
    with pytest.raises(ValueError, match="net: a quantised module can't be saved"):
        member.save(tmp_path)
    with torch.no_grad():
        net[-1].weight += 1
    other = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    assert (
        TorchMember(small).fingerprint()
        == TorchMember(small).fingerprint()
        != TorchMember(other).fingerprint()
    )


def test_members_that_know_their_outputs_are_not_judged():
    from sklearn.naive_bayes import GaussianNB

    model = GaussianNB().fit(X, (X[:, 0] > 0).astype(int))
    assert isinstance(as_member(model, output="logits"), SklearnMember)
    np.testing.assert_allclose(
        Ensemble.from_members([model], output="logits").predict_proba(X), model.predict_proba(X), atol=1e-5
    )


def test_modules_that_were_trained_here_return_logits(tmp_path):
    """Cross entropy was computed from their outputs, so these are logits."""
    from ensdistill.common.optimization import Optimization

    rows = Rows(X, np.arange(40), (X[:, 0] > 0).astype(np.int64))
    factory = functools.partial(Ends, end=nn.Identity(), outputs=2)
    ensemble = Ensemble.train(
        lambda: factory(), rows, members=2, optimization=Optimization(steps=5, batch_size=8)
    )
    assert [m.output for m in ensemble.members] == ["logits", "logits"]
    with torch.no_grad():
        own = ensemble.members[0].module.eval()(torch.from_numpy(X)).numpy()
    np.testing.assert_array_equal(ensemble.raw_logits(X)[0], own)
