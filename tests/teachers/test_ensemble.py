"""The ensemble: combination, calibration, weights, and training that survives being killed."""

import functools
import json
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble, train_ensemble
from ensdistill.teachers.fitting.calibration import (
    negative_log_likelihood,
)
from ensdistill.teachers.members import CallableMember, TorchMember
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers


def fixed(logits, name, classes=None):
    return CallableMember(
        lambda x: logits[: len(x)], name=name, version="1", output="logits", classes=classes
    )


def test_predictions_are_calibrated_and_combined():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 3)).astype(np.float32)
    ensemble = Ensemble.from_members([fixed(a, "a"), fixed(b, "b")], weights=[3, 1])
    np.testing.assert_array_equal(ensemble.weights, [0.75, 0.25])
    ensemble.temperatures, ensemble.temperature = np.array([2.0, 0.5]), 0.8
    z = ensemble.predict_logits(np.zeros((6, 1)))
    assert (z.dtype, z.shape) == (torch.float32, (2, 6, 3))
    np.testing.assert_allclose(z, np.stack([a / 1.6, b / 0.4]), rtol=1e-6)
    expected = 0.75 * softmax(a / 3.2, -1) + 0.25 * softmax(b / 0.8, -1)
    np.testing.assert_allclose(ensemble.predict_proba(np.zeros((6, 1)), temperature=2.0), expected, atol=1e-6)


def test_calibrate_and_weigh_improve_held_out_rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    z = np.array([20.0, 0.3, 1.0])[:, None, None] * (
        2 * np.eye(4)[labels] + np.array([0.7, 0.7, 5])[:, None, None] * rng.normal(size=(3, 400, 4))
    )
    z = z.astype(np.float32)
    ensemble = Ensemble.from_members([fixed(m, n) for m, n in zip(z, "abc", strict=True)])
    start = negative_log_likelihood(np.log(ensemble.combine(ensemble.apply_temperatures(z))), labels)
    ensemble.calibrate(torch.from_numpy(z), labels)
    calibrated = negative_log_likelihood(np.log(ensemble.combine(ensemble.apply_temperatures(z))), labels)
    ensemble.weigh(z, labels)
    weighed = negative_log_likelihood(np.log(ensemble.combine(ensemble.apply_temperatures(z))), labels)
    assert weighed < calibrated < start
    assert ensemble.temperatures[0] > 4.9 > 1 > ensemble.temperatures[1]
    assert ensemble.weights[2] < 0.02


def test_members_are_aligned_by_class_name():
    z = np.array([[1.0, 2.0, 3.0]], np.float32)
    ensemble = Ensemble.from_members(
        [fixed(z, "a", ("x", "y", "z")), fixed(z, "b", ("z", "x", "y")), fixed(z, "c")]
    )
    assert ensemble.classes == ("x", "y", "z")
    np.testing.assert_array_equal(
        ensemble.predict_logits(np.zeros((1, 1)))[:, 0], [[1, 2, 3], [2, 3, 1], [1, 2, 3]]
    )
    with pytest.raises(ValueError, match=r"members: b has the classes \['x', 'w'\]; expected \['x', 'y'\]"):
        Ensemble.from_members([fixed(z, "a", ("x", "y")), fixed(z, "b", ("x", "w"))])


def test_bad_members_and_weights():
    z = np.zeros((4, 3), np.float32)
    bad = z.copy()
    bad[2, 1] = np.nan
    x = np.zeros((4, 1))
    with pytest.raises(ValueError, match="at least one; got none"):
        Ensemble.from_members([])
    with pytest.raises(ValueError, match="2 are called 'a'"):
        Ensemble.from_members([fixed(z, "a"), fixed(z, "a")])
    with pytest.raises(ValueError, match=r"broken: the logits of row 2 hold nan \(1 such rows: \[2\]\)"):
        Ensemble.from_members([fixed(z, "a"), fixed(bad, "broken")]).predict_logits(x)
    with pytest.raises(ValueError, match="hold inf"):
        Ensemble.from_members([fixed(np.where(np.isnan(bad), np.inf, bad), "a")]).predict_logits(x)
    with pytest.raises(ValueError, match="row 2 are all -inf"):
        Ensemble.from_members([fixed(np.where(np.arange(4)[:, None] == 2, -np.inf, z), "a")]).predict_logits(
            x
        )
    with pytest.raises(ValueError, match="b has 2 classes, a has 3"):
        Ensemble.from_members([fixed(z, "a"), fixed(z[:, :2], "b")]).predict_logits(x)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan], ["a", "b"], [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="weights: expected 2 numbers"):
            Ensemble.from_members([fixed(z, "a"), fixed(z, "b")], weights=weights)
    with pytest.raises(ValueError, match="combiner: expected"):
        Ensemble.from_members([fixed(z, "a")], combiner="mean")
    with pytest.raises(ValueError, match="temperature: expected a positive number; got 0"):
        Ensemble.from_members([fixed(z, "a")]).predict_proba(x, temperature=0)
    with pytest.raises(ValueError, match=r"logits: expected \[1, 4, C\]"):
        Ensemble.from_members([fixed(z, "a")]).calibrate(z[None, :3], np.zeros(4, np.int64))


def recipes():
    quick = Optimization(steps=160, batch_size=32, learning_rate=0.03)
    cnn = functools.partial(CNN, channels=[4, 8], dropout=0.1)
    return [
        TorchMembers(
            cnn, count=2, name="cnn", optimization=quick, augment=ShiftImages(), checkpoint_every=64
        ),
        SklearnMembers(SVC(gamma=0.05, C=10), augment=ShiftImages(diagonal=False)),
        SklearnMembers(ExtraTreesClassifier(10), count=2, name="trees", smoothing=0.01),
    ]


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *train_ensemble(recipes(), digits.labelled, digits.classes, seed=4, folder=folder), folder


def test_trained_ensemble_beats_its_members(digits, trained):
    ensemble, held_out, _ = trained
    assert ensemble.names == ("cnn-1", "cnn-2", "svc", "trees-1", "trees-2")
    assert held_out.shape == (5, 200, 10)
    logits, labels = (
        ensemble.predict_logits(digits.test.inputs).numpy() * ensemble.temperature,
        digits.test.labels,
    )
    mixture = np.log(ensemble.predict_proba(digits.test.inputs))
    assert (mixture.argmax(1) == labels).mean() > 0.94
    assert negative_log_likelihood(mixture, labels) < min(
        negative_log_likelihood(log_softmax(z, -1), labels) for z in logits.astype(float)
    )
    assert ensemble.parameters == sum(m.parameters for m in ensemble.members)


def test_held_out_predictions_are_of_members_that_did_not_see_the_row(digits, trained):
    _, held_out, _ = trained
    # Trees fitted to a row know it by heart; so do not those that did not see it.
    correct = (held_out[3].argmax(1) == digits.labelled.labels).mean()
    forest = trained[0].members[3].predict_logits(digits.labelled.inputs)
    assert (forest.argmax(1) == digits.labelled.labels).all()
    assert 0.7 < correct < 0.97


def test_members_of_one_recipe_differ(trained):
    prints = list(trained[0].fingerprint()["members"].values())
    assert len(set(prints)) == 5


def test_training_in_memory_and_on_disk_agree(digits, trained):
    ensemble, held_out = train_ensemble(recipes(), digits.labelled, digits.classes, seed=4)
    np.testing.assert_array_equal(held_out, trained[1])
    assert ensemble.fingerprint() == trained[0].fingerprint()


def test_finished_members_are_not_trained_again(digits, trained, monkeypatch):
    for kind in (TorchMembers, SklearnMembers):
        monkeypatch.setattr(kind, "fit", lambda *a, **k: pytest.fail("trained again"))
    ensemble, held_out = train_ensemble(recipes(), digits.labelled, digits.classes, seed=4, folder=trained[2])
    assert ensemble.fingerprint() == trained[0].fingerprint()
    np.testing.assert_array_equal(held_out, trained[1])


def test_another_seed_or_setting_is_trained_anew(digits, tmp_path):
    def go(seed=0, c=1.0):
        return train_ensemble(
            [SklearnMembers(SVC(C=c))], digits.labelled, digits.classes, seed=seed, folder=tmp_path
        )[1]

    first, seed, setting, again = go(), go(seed=1), go(c=5.0), go()
    assert (first != seed).any()
    assert (first != setting).any()
    np.testing.assert_array_equal(first, again)


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests", "tests/teachers"]
from test_ensemble import recipes, train_ensemble
from ensdistill.data import Digits

folder, name, share, jobs = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
done = {}
def progress(status):
    done.update({key: status.step / status.steps for key in status.names})
    own = [part for key, part in done.items() if key.startswith(name)]
    if own and sum(own) >= share * jobs:
        os.kill(os.getpid(), signal.SIGKILL)
split = Digits().split(seed=0)
train_ensemble(recipes(), split.labelled, split.classes, seed=4, folder=folder, progress=progress)
"""


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("cnn", 0.6),
        pytest.param("svc", 0.5, marks=pytest.mark.slow),
        pytest.param("trees", 1.0, marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_ends_with_the_same_bits(digits, trained, tmp_path, name, share):
    jobs = {"cnn": 12, "svc": 6, "trees": 12}[name]  # five folds and the ensemble's own
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), name, str(share), str(jobs)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    seen = []
    ensemble, held_out = train_ensemble(
        recipes(),
        digits.labelled,
        digits.classes,
        seed=4,
        folder=tmp_path,
        progress=lambda status: seen.append((status.names, status.step / status.steps)),
    )
    if name == "cnn":
        assert seen[0][1] > 0.3  # from the checkpoint, not from the first step
    else:
        assert seen
        assert not any(names[0].startswith("cnn") for names, _ in seen)  # finished before the kill
    assert not list(tmp_path.rglob("checkpoint"))
    np.testing.assert_array_equal(held_out, trained[1])
    assert ensemble.fingerprint() == trained[0].fingerprint()
    x = digits.test.inputs
    assert torch.equal(ensemble.predict_logits(x), trained[0].predict_logits(x))


def test_save_and_load(digits, trained, tmp_path):
    ensemble = trained[0]
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path)
    assert loaded.fingerprint() == ensemble.fingerprint()
    assert torch.equal(loaded.predict_logits(digits.test.inputs), ensemble.predict_logits(digits.test.inputs))
    np.testing.assert_array_equal(
        loaded.predict_proba(digits.test.inputs, 2.0), ensemble.predict_proba(digits.test.inputs, 2.0)
    )
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_save_that_fails_leaves_the_folder_as_it_was(trained, tmp_path):
    named = TorchMember(
        MLP(64, [], 10), name="named", factory=functools.partial(MLP, inputs=64, hidden=[], outputs=10)
    )
    bare = Ensemble.from_members([named, MLP(64, [4], 10)])
    with pytest.raises(
        ValueError,
        match=r"^mlp: cannot be saved .* TorchMember\(module, name='mlp', factory=functools\.partial\(MLP, ",
    ):
        bare.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    trained[0].save(tmp_path / "old")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="cannot be saved"):
        bare.save(tmp_path / "old")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    Ensemble.from_members([named]).save(tmp_path / "old")
    assert Ensemble.load(tmp_path / "old").names == ("named",)


def test_the_repr_of_an_ensemble():
    ensemble = Ensemble.from_members(
        [fixed(np.zeros((4, 3)), "a"), fixed(np.zeros((4, 3)), "longer")], weights=[3, 1]
    )
    ensemble.temperature, ensemble.temperatures = 0.9, np.array([2.0, 0.25])
    assert repr(ensemble) == (
        "Ensemble: combiner 'prob', temperature 0.900, members\n"
        "    a       weight 0.750, temperature 2.000\n"
        "    longer  weight 0.250, temperature 0.250"
    )


class Picky(GaussianNB):
    """Returns NaN for some rows."""

    def predict_proba(self, x):
        answer = super().predict_proba(x)
        answer[x[:, 0] > 1] = np.nan
        return answer


def test_a_held_out_row_without_logits_is_named_by_its_uid():
    rng = np.random.default_rng(0)
    inputs, uids = rng.random((40, 3), np.float32), rng.permutation(1000)[:40]
    inputs[17, 0] = 2
    rows = Rows(inputs, uids, np.arange(40) % 2)
    with pytest.raises(
        ValueError,
        match=rf"^picky: probabilities: .* that row is row 17 of the labelled rows, of uid {uids[17]}$",
    ):
        train_ensemble([SklearnMembers(Picky())], rows, ("a", "b"), folds=4)


def test_loading_refuses_a_folder_that_is_no_ensemble(trained, tmp_path):
    with pytest.raises(ValueError, match=r"^folder: there is no folder '.*nope'$"):
        Ensemble.load(tmp_path / "nope")
    with pytest.raises(
        ValueError, match=r"^folder: .* holds no ensemble: there is no ensemble.json, which is written last"
    ):
        Ensemble.load(tmp_path)
    trained[0].save(tmp_path)
    about = json.loads((tmp_path / "ensemble.json").read_text())
    for change, words in [
        ({"format": 9}, "got format 9"),
        ({"members": {"../../x": "0"}}, "is no member's name"),
        ({"members": {**about["members"], "svc": "0" * 32}}, "the content of svc is"),
        ({"members": 5}, r"is none that was saved \(TypeError"),
        ({"weights": [1.0]}, "weights: expected 5 numbers"),
        ({"weights": [3, 3, 3, 3, 3]}, r"weights: expected 5 numbers of at least 0 and of sum 1; got \[3, 3"),
        ({"temperatures": [1, 1, 1, 1, -1]}, "temperatures: expected 5 positive numbers"),
        ({"temperature": 0}, "temperature: expected a positive number; got 0"),
        ({"temperature": None}, "temperature: expected a positive number; got None"),
        ({"vectors": [[1]]}, r"vectors: expected numbers \[2, 5, 10\]; got \[\[1\]\]"),
    ]:
        (tmp_path / "ensemble.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=words):
            Ensemble.load(tmp_path)
    for key in ("members", "weights", "combiner", "classes"):
        (tmp_path / "ensemble.json").write_text(
            json.dumps({name: value for name, value in about.items() if name != key})
        )
        with pytest.raises(ValueError, match=rf"is none that was saved \(KeyError: '{key}'\)"):
            Ensemble.load(tmp_path)


def test_other_versions_of_the_libraries_load_a_saved_ensemble(trained, tmp_path, monkeypatch):
    trained[0].save(tmp_path)
    before = trained[0].members[2].fingerprint()
    monkeypatch.setattr("torch.__version__", "99.0")
    monkeypatch.setattr("sklearn.base.__version__", "99.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, of another version
        loaded = Ensemble.load(tmp_path)
        assert loaded.members[2].fingerprint() == before  # of the files from which it was loaded
    x = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    assert torch.equal(loaded.predict_logits(x), trained[0].predict_logits(x))


def test_bad_training_arguments(digits):
    svc = SklearnMembers(SVC())
    labelled = digits.labelled
    with pytest.raises(ValueError, match=r"folds: expected 2 to \d+, the rows of the rarest class"):
        train_ensemble([svc], labelled, digits.classes, folds=50)
    with pytest.raises(
        ValueError, match="different names; 2 are called 'svc'; give each its own name: name="
    ):
        train_ensemble([svc, svc], labelled, digits.classes)
    with pytest.raises(ValueError, match=r"labels in 0\.\.9"):
        train_ensemble([svc], labelled.without_labels(), digits.classes)
    with pytest.raises(ValueError, match="its 2 members would be equal"):
        SklearnMembers(SVC(random_state=3), count=2)
    with pytest.raises(ValueError, match="name"):
        TorchMembers(MLP, name="../up")
    with pytest.raises(ValueError, match="model: net: expected a module class"):
        TorchMembers(lambda: MLP()).check_storable()
    with pytest.raises(ValueError, match="expected 10 outputs"):
        train_ensemble([TorchMembers(functools.partial(MLP, outputs=7))], labelled, digits.classes)


def test_a_member_that_goes_wrong_is_named(digits):
    inputs = digits.labelled.inputs.copy()
    inputs[3] = np.nan
    rows = Rows(inputs, digits.labelled.uids, digits.labelled.labels)
    quick = TorchMembers(MLP, count=1, name="mlp", optimization=Optimization(steps=5))
    with pytest.raises(FloatingPointError, match=r"mlp, fold 1: the loss is nan at step \d"):
        train_ensemble([quick], rows, digits.classes)
