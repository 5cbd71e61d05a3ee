"""Methods that train modules of their own, read the student's layers, or keep the members' spread."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import method_forms as forms
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_methods import LABELS, OUTPUTS, TEACHERS, WEIGHTS, B, C, K, batch_of, loss_of, slope
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.models import MLP
from ensdistill.student import OnlineTeachers
from ensdistill.student.companion import WithCompanion, notes_of, student_of
from ensdistill.student.generations import born_again, seed_of
from ensdistill.student.methods import Start, build
from ensdistill.student.methods.dirichlet import uncertainties
from ensdistill.student.methods.distribution import Guard
from ensdistill.student.methods.hints import Hints
from ensdistill.student.methods.weighted import Gate
from ensdistill.student.online import EnsembleSource
from ensdistill.teachers.members import load_member
from ensdistill.teachers.members.heads import MultiHead

SHORT = Optimization(steps=64, batch_size=20, learning_rate=0.02)
STUDENT = partial(MLP, inputs=6, hidden=[8], outputs=3)
X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
ROWS = Rows(X, np.arange(60), np.where(np.arange(60) % 2, np.arange(60) % 3, -100))
slow = partial(pytest.param, marks=pytest.mark.slow)
APART = ["mutual", slow({"weighted": {"by": "learned"}}), slow("endd"), "hydra", slow("proxy_dirichlet")]


@pytest.fixture(scope="module")
def ensemble():
    torch.manual_seed(0)
    return Ensemble.from_members([MLP(6, [8], 3).requires_grad_(False) for _ in range(2)])


@pytest.fixture(scope="module")
def cache(ensemble, tmp_path_factory):
    return cache_targets(ensemble, ROWS, tmp_path_factory.mktemp("apart") / "targets", codec="fp32")


def targets_of(teachers=TEACHERS, weights=WEIGHTS):
    return EnsembleLogits(torch.tensor(teachers, dtype=torch.float32), torch.tensor(weights))


@pytest.mark.parametrize(
    ("method", "form"), [("proxy_dirichlet", forms.proxy_dirichlet), ("endd", forms.endd)]
)
def test_dirichlet_losses_are_those_of_the_papers_equations(method, form):
    loss, gradient = loss_of(method, own=Guard() if method == "endd" else None)
    assert loss == pytest.approx(form(OUTPUTS, TEACHERS, WEIGHTS, LABELS), rel=1e-5)
    slopes = slope(form)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4 * np.abs(slopes).max())


def test_at_the_proxy_s_optimum_the_softmax_is_the_members_mean():
    mean, precision = forms.proxy(TEACHERS, WEIGHTS)
    _, gradient = loss_of("proxy_dirichlet", np.log(precision[:, None] * mean))
    assert np.abs(gradient).max() < 1e-5
    assert np.abs(loss_of("proxy_dirichlet")[1]).max() > 1e-2


def test_uncertainties_of_a_dirichlet_are_those_of_draws_from_it():
    alpha = np.array([0.5, 2.0, 3.0])
    draws = np.random.default_rng(0).dirichlet(alpha, 200_000).clip(1e-300)
    mean = alpha / alpha.sum()
    total, data, knowledge = (part.item() for part in uncertainties(torch.tensor(alpha[None])))
    assert total == pytest.approx(-(mean * np.log(mean)).sum())
    assert data == pytest.approx(-(draws * np.log(draws)).sum(1).mean(), abs=5e-3)
    assert knowledge == pytest.approx(total - data)


def test_each_head_learns_its_member():
    own = np.random.default_rng(1).normal(size=(B, K * C))
    method = build("hydra")
    source = type("Source", (), {"weights": WEIGHTS})()
    features = torch.tensor(own, dtype=torch.float32, requires_grad=True)
    y = torch.from_numpy(LABELS)
    batch = batch_of(y, features={"model": features})
    loss = method.for_source(source)(None, targets_of(), y, batch)
    heads = own.reshape(B, K, C).transpose(1, 0, 2)
    expected = sum(w * forms.kd(heads[k], TEACHERS[k : k + 1], [1.0], y) for k, w in enumerate(WEIGHTS))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_learned_weights_minimise_the_divergence_and_the_labels_cross_entropy():
    gate = Gate(K, C)
    with torch.no_grad():
        gate.factors.copy_(torch.from_numpy(np.random.default_rng(2).normal(size=(K, C))))
        gate.direction.copy_(torch.linspace(-1, 1, C))
    found, _ = loss_of({"weighted": {"by": "learned"}}, own=gate)
    a, v = gate.factors.detach().double().numpy(), gate.direction.detach().double().numpy()
    shares = forms.softmax(np.einsum("bc,kc,c->bk", forms.softmax(OUTPUTS), a, v)).T
    mix = (shares[:, :, None] * forms.softmax(TEACHERS)).sum(0)
    known = LABELS >= 0
    expected = forms.kl(mix, forms.softmax(OUTPUTS)).mean() - np.log(mix[known, LABELS[known]]).mean()
    assert found == pytest.approx(expected, rel=1e-5)
    assert gate.factors.grad.abs().max() > 0


def test_weights_that_are_learned_prefer_the_member_that_is_right(tmp_path):
    x = np.eye(6, dtype=np.float32)[np.arange(120) % 6]
    rows = Rows(x, np.arange(120), np.arange(120) % 6 // 2)
    right = np.where(np.arange(3) == (np.arange(6) // 2)[:, None], 3.0, 0.0)
    members = []
    for weight in (right, right[:, ::-1].copy()):
        member = nn.Linear(6, 3, bias=False).requires_grad_(False)
        member.weight.copy_(torch.from_numpy(weight.T))
        members.append(member)
    source = cache_targets(Ensemble.from_members(members), rows, tmp_path / "two", codec="fp32")
    long = Optimization(steps=96, batch_size=40, learning_rate=0.1)
    accuracy = []
    for by in ("uniform", "learned"):
        trained = StudentTrainer(long, method={"weighted": {"by": by}}).distill(
            partial(nn.Linear, 6, 3), rows, source
        )
        log_p = trained.module(torch.from_numpy(x)).log_softmax(1).detach().numpy()
        accuracy.append(-log_p[np.arange(120), rows.labels].mean())
    assert accuracy[1] < 0.7 * accuracy[0]


def test_mutual_students_learn_from_each_other():
    torch.manual_seed(0)
    peers = nn.ModuleList([nn.Linear(6, C), nn.Linear(6, C)])
    y = torch.from_numpy(LABELS)
    batch = batch_of(y, own=peers)
    batch.inputs = torch.from_numpy(X[:B])
    s = torch.tensor(OUTPUTS, dtype=torch.float32, requires_grad=True)
    loss = build({"mutual": {"of": "kd", "peers": 2, "weight_of_peers": 0.5}})(s, targets_of(), y, batch)
    loss.backward()
    logits = [OUTPUTS, *(peer(batch.inputs).detach().double().numpy() for peer in peers)]
    q = [forms.softmax(one) for one in logits]
    expected = sum(forms.kd(one, TEACHERS, WEIGHTS, LABELS) for one in logits)
    for i in range(3):
        expected += 0.5 * np.mean([forms.kl(q[j], q[i]).mean() for j in range(3) if j != i])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # The student's gradient is that of its own terms: the others' distributions are given.
    own = (q[0] - forms.mixed(TEACHERS, WEIGHTS, 1)) / B + 0.5 * (q[0] - (q[1] + q[2]) / 2) / B
    np.testing.assert_allclose(s.grad.numpy(), own, atol=1e-6)
    assert peers[0].weight.grad.abs().max() > 0


def test_hints_are_half_the_squared_distance_through_the_regressor():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    student = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    method = Hints("1", "1", teacher=teacher)
    inputs = torch.from_numpy(X[:B])
    regressor = method.companion(Start(student, lambda: student, inputs[:2], 1, 3))
    features = torch.randn(B, 4, requires_grad=True)
    batch = batch_of(torch.from_numpy(LABELS), own=regressor, features={"1": features})
    batch.inputs = inputs
    loss = method(None, None, batch.labels, batch)
    difference = regressor(features) - torch.tanh(teacher[0](inputs))
    assert loss.item() == pytest.approx(difference.square().mean().item() / 2, rel=1e-5)
    loss.backward()
    assert features.grad.abs().max() > 0
    assert teacher[0].weight.grad is None


def test_several_pairs_of_layers_cost_the_mean_of_their_hints():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    student = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs, pairs = torch.from_numpy(X[:B]), (("0", "1"), ("1", "1"), ("0", "2"))
    method = Hints(*map(list, zip(*pairs, strict=True)), teacher=teacher)
    assert method.layers == ("0", "1")
    regressors = method.companion(Start(student, lambda: student, inputs[:2], 1, 3))
    features = {name: torch.randn(B, 4) for name in method.layers}
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of(torch.from_numpy(LABELS), own=regressors, features=features)
    batch.inputs = inputs
    loss = method(None, None, batch.labels, batch)
    assert len(calls) == 1  # the teacher runs once for all pairs
    each = []
    for own, hint in zip(regressors, pairs, strict=True):
        alone = batch_of(batch.labels, own=own, features=features)
        alone.inputs = inputs
        each.append(Hints(*hint, teacher=teacher)(None, None, batch.labels, alone).item())
    assert len(set(each)) == 3
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-5)


def test_a_student_learns_several_layers_of_a_member(ensemble):
    hints = {"student_layer": ["1", "2"], "teacher_layer": ["1", "2"]}
    short = Optimization(steps=32, batch_size=20, learning_rate=0.02)
    both, one = (
        StudentTrainer(short, method={"kd": 1, "hints": given}).distill(
            STUDENT, ROWS, OnlineTeachers(ensemble)
        )
        for given in (hints, {"student_layer": "1", "teacher_layer": "1"})
    )
    assert not torch.equal(both.module[1].weight, one.module[1].weight)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ((["1", "2"], ["1"]), r"^teacher_layer: expected as many layers as student_layer has, 2, .*got 1"),
        (([], "1"), r"^student_layer: expected the name of a module, or a list of names; got \[\]"),
        (
            ("1", ["1", 2]),
            r"^teacher_layer: expected the name of a module, or a list of names; got \['1', 2\]",
        ),
    ],
)
def test_pairs_that_are_none_are_refused(layers, match):
    with pytest.raises(ValueError, match=match):
        Hints(*layers)


def test_hints_of_feature_maps_have_a_regressor_of_one_pixel(tmp_path):
    teacher = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(20, 3))
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    start = Start(student, lambda: student, torch.zeros(2, 1, 4, 4), 1, 3)
    assert Hints("0", "0", teacher=teacher).companion(start).weight.shape == (5, 2, 1, 1)
    with pytest.raises(ValueError, match=r"^student_layer, teacher_layer: .*got \[2, 2, 2, 2\] .* \[2, 20\]"):
        Hints("0", "1", teacher=teacher).companion(start)
    with pytest.raises(ValueError, match=r"^student_layer: expected modules of Sequential, 0, 1, 2; got"):
        Hints("9", "0", teacher=teacher).companion(start)
    with pytest.raises(ValueError, match=r"^teacher_layer: expected modules of Sequential, 0, 1, 2; got"):
        Hints("0", "9", teacher=teacher).companion(start)
    with pytest.raises(ValueError, match=r"^teacher: Sequential does not take the student's inputs"):
        Hints("0", "0", teacher=nn.Sequential(nn.Linear(3, 3))).companion(start)


@pytest.mark.parametrize("method", APART, ids=str)
def test_a_training_resumes_with_the_same_bits_and_loses_the_companion(cache, tmp_path, method):
    trainer = StudentTrainer(SHORT, method=method, ema=0.9)
    whole = trainer.distill(STUDENT, ROWS, cache, seed=3)

    def stop(done, total):
        if done == 32:
            raise KeyboardInterrupt

    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        trainer.distill(STUDENT, ROWS, cache, seed=3, checkpoint=file, checkpoint_every=32, progress=stop)
    assert file.exists()
    again = trainer.distill(STUDENT, ROWS, cache, seed=3, checkpoint=file, checkpoint_every=32)
    for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert type(again.module) is (MultiHead if method == "hydra" else MLP)
    assert not any(isinstance(module, WithCompanion) for module in again.module.modules())
    again.member(factory=STUDENT).save(tmp_path / "member")
    loaded = load_member(tmp_path / "member").predict_logits(X)
    np.testing.assert_array_equal(loaded, again.member().predict_logits(X))


def test_names_of_parameters_and_the_best_weights_are_the_student_s_own(cache, tmp_path):
    groups = [ParameterGroup("1.weight", learning_rate=0.0), ParameterGroup("method.*", learning_rate=0.5)]
    settings = StudentOptimization(steps=64, batch_size=20, learning_rate=0.02, groups=groups)
    trainer = StudentTrainer(settings, method="mutual")
    trained = trainer.distill(STUDENT, ROWS, cache, folder=tmp_path, validation=0.3)
    best = load_file(tmp_path / "best.safetensors")
    assert best.keys() == trained.module.state_dict().keys()
    for name, value in trained.module.state_dict().items():
        assert torch.equal(best[name], value)
    still = StudentTrainer(Optimization(steps=32, batch_size=20)).distill(STUDENT, ROWS, cache)
    assert not torch.equal(still.module[1].weight, trained.module[1].weight)


def test_a_companion_changes_nothing_but_the_loss(cache):
    short = Optimization(steps=32, batch_size=20, learning_rate=0.02)
    plain = StudentTrainer(short).distill(STUDENT, ROWS, cache)
    beside = {"kd": 1, "mutual": {"weight": 0.0}}
    found = StudentTrainer(short, method=beside).distill(STUDENT, ROWS, cache)
    for a, b in zip(plain.module.parameters(), found.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert student_of(plain.module) is plain.module


def test_hints_of_online_teachers_teach_the_layer(ensemble):
    hints = {"student_layer": "1", "teacher_layer": "1", "weight": 5.0}
    online = OnlineTeachers(ensemble)
    before = copy.deepcopy(ensemble.members[0].module.state_dict())
    trained = StudentTrainer(SHORT, method={"kd": 1, "hints": hints}).distill(STUDENT, ROWS, online)
    plain = StudentTrainer(SHORT).distill(STUDENT, ROWS, online)
    assert not torch.equal(trained.module[1].weight, plain.module[1].weight)
    assert all(torch.equal(before[n], t) for n, t in ensemble.members[0].module.state_dict().items())
    assert isinstance(online, EnsembleSource)


def test_hints_read_a_copy_of_a_member_that_predicts_on_another_thread(ensemble):
    own = ensemble.members[0].module
    for given in (None, own):
        found = Hints("1", "1", teacher=given).for_source(OnlineTeachers(ensemble)).teacher
        assert found is not own
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), own.parameters(), strict=True))


def test_a_collapse_is_reported_and_the_training_goes_on_by_the_proxy():
    guard, huge = Guard(), np.where(np.eye(B, C) > 0, 40.0, OUTPUTS)
    with pytest.warns(
        UserWarning, match=r"^method: endd collapsed at step 0: a logit is 40, .*proxy_dirichlet"
    ):
        loss, _ = loss_of("endd", huge, own=guard)
    assert loss == pytest.approx(loss_of("proxy_dirichlet", huge)[0])
    assert notes_of(guard) == ("endd collapsed at step 0; trained on by proxy_dirichlet",)
    assert notes_of(Guard()) == notes_of(None) == notes_of(nn.Linear(2, 2)) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        after, gradient = loss_of("endd", own=guard)
    assert after == pytest.approx(loss_of("proxy_dirichlet")[0])
    assert np.isfinite(gradient).all()


def test_a_training_too_short_for_a_verdict_tells_how_far_its_mean_is():
    guard, log_mean = Guard(), torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log()
    guard.watch(-5 * log_mean.exp(), torch.zeros(2), log_mean, 0)
    assert not guard.collapsed
    assert notes_of(guard)[0].startswith("endd ended ")
    assert "train for more steps" in notes_of(guard)[0]
    guard.watch(log_mean, torch.zeros(2), log_mean, 0)
    assert notes_of(guard) == ()


def test_a_mean_that_is_worse_than_a_constant_is_a_collapse():
    guard = Guard()
    s = torch.tensor(OUTPUTS * 3)
    log_mean = torch.tensor(np.log(forms.mixed(TEACHERS, WEIGHTS, 1)))
    fine = torch.zeros(B)
    guard.watch(log_mean, fine, log_mean, 500)
    assert not guard.collapsed
    for step in range(99):
        guard.watch(s, fine, log_mean, step)
    assert not guard.collapsed
    with pytest.warns(UserWarning, match=r"times as far from the members' as a constant prediction"):
        guard.watch(s, fine, log_mean, 100)
    with pytest.warns(UserWarning, match=r"its loss is not finite"):
        Guard().watch(log_mean, fine + torch.nan, log_mean, 0)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("endd", "^method: expected at least 2 members for DistributionDistillation.* has 1: choose kd"),
        (
            {"weighted": {"by": "given", "weights": [1, 2]}},
            "^weights: expected a number for each of 1 members",
        ),
        (
            {"hints": {"student_layer": "1", "teacher_layer": "1"}},
            "^teacher: expected a module, because TargetCache has no members",
        ),
        ({"rkd": 1}, r"^rows\.weights: expected none for Relational, which compares the rows"),
    ],
    ids=str,
)
def test_trainings_that_a_method_cannot_serve_are_refused(ensemble, tmp_path, method, match):
    one = Ensemble.from_members(ensemble.members[:1])
    weights = np.ones(60) if method == {"rkd": 1} else None
    rows = Rows(X, np.arange(60), ROWS.labels, weights=weights)
    source = cache_targets(one, rows, tmp_path / "one")
    with pytest.raises(ValueError, match=match):
        StudentTrainer(SHORT, method=method).distill(STUDENT, rows, source)


def test_members_are_needed_where_the_cache_holds_the_mixture(ensemble, tmp_path):
    mixture = cache_targets(ensemble, ROWS, tmp_path / "mixture", mixture_at=1.0, codec="fp32")
    for method in ("mse", "hydra", "weighted", "proxy_dirichlet", "rkd"):
        with pytest.raises(ValueError, match=r"holds the mixture of its 2 members at temperature 1.0 only"):
            StudentTrainer(SHORT, method=method).distill(STUDENT, ROWS, mixture)
    with pytest.raises(
        ValueError, match=r"^temperature: 4.0, but the cache .* holds the mixture at 1.0 only"
    ):
        StudentTrainer(SHORT, method="dkd").distill(STUDENT, ROWS, mixture)
    StudentTrainer(SHORT, method={"dkd": {"temperature": 1.0}}).distill(STUDENT, ROWS, mixture)


@pytest.mark.parametrize("setting", [{"compile": True}, {"shard": True}])
def test_settings_that_a_companion_does_not_go_with_are_refused(cache, setting):
    (name,) = setting
    with pytest.raises(
        ValueError, match=f"^{name}: expected False for the method Mutual, which has a module"
    ):
        StudentTrainer(SHORT, method="mutual", **setting).distill(STUDENT, ROWS, cache)


def test_a_network_of_heads_is_refused_where_it_does_not_end_with_a_linear_layer():
    with pytest.raises(ValueError, match=r"^model: expected a network that ends with an nn.Linear"):
        MultiHead(nn.Sequential(nn.Flatten(), nn.ReLU()), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"^weights: expected a number above 0"):
        MultiHead(nn.Linear(2, 2), [0.0, 0.0])


def test_each_generation_learns_from_the_one_before_it(cache):
    trainer = StudentTrainer(SHORT)
    first, second = born_again(trainer, STUDENT, ROWS, cache, generations=2, seed=4)
    alone = trainer.distill(STUDENT, ROWS, cache, seed=4)
    assert torch.equal(first.module[1].weight, alone.module[1].weight)
    source = OnlineTeachers(Ensemble.from_members([first.member("generation-0")]))
    again = trainer.distill(STUDENT, ROWS, source, seed=seed_of(2, 4))
    assert torch.equal(second.module[1].weight, again.module[1].weight)
    with pytest.raises(ValueError, match=r"^generations: expected at least 1; got 0"):
        born_again(trainer, STUDENT, ROWS, cache, generations=0)
