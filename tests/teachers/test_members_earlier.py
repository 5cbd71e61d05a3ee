"""Members that earlier versions saved: they load with the same logits, or the message names the format and
the remedy."""

import io
import json
import zipfile

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from ensdistill.common.fingerprint import digest
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import BoostedMember, SklearnMember, load_member

X, Y = make_classification(120, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)
FILES = {"xgboost": "model.ubj", "lightgbm": "model.txt", "catboost": "model.cbm"}


def fitted(library):
    if library == "xgboost":
        return pytest.importorskip("xgboost").XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1).fit(X, Y)
    if library == "lightgbm":
        return pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1).fit(X, Y)
    catboost = pytest.importorskip("catboost")
    return catboost.CatBoostClassifier(
        iterations=3, thread_count=1, verbose=False, allow_writing_files=False
    ).fit(X, Y)


def rewritten(folder, change):
    file = folder / "member.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def first_booster(folder, library):
    """Write ``member.json`` as the first version did: without columns, and without the option
    "classifier"."""

    def change(about):
        del about["columns"]
        about["options"].pop("classifier", None)
        more = [about[key] for key in ("options", "known", "smoothing", "classes")]
        about["fingerprint"] = digest([library, (folder / FILES[library]).read_bytes(), *more])

    rewritten(folder, change)


@pytest.mark.parametrize("library", FILES)
@pytest.mark.parametrize("kind", ["classifier", "booster"])
def test_boosters_of_the_first_version_are_loaded(tmp_path, library, kind):
    model = fitted(library)
    native = {"xgboost": "get_booster", "lightgbm": "booster_"}.get(library)
    if kind == "booster":
        if native is None:
            pytest.skip("CatBoost has one class for both")
        model = getattr(model, native)
        model = model() if callable(model) else model
    member = BoostedMember(model, name="trees")
    folder = tmp_path / "e" / "members" / "trees"
    Ensemble.from_members([member]).save(tmp_path / "e")
    first_booster(folder, library)
    loaded = load_member(folder)
    np.testing.assert_array_equal(loaded.predict_logits(X), member.predict_logits(X))
    assert (loaded.fingerprint(), loaded.classes) == (member.fingerprint(), member.classes)
    loaded.save(tmp_path / "again")
    assert "columns" in json.loads((tmp_path / "again" / "member.json").read_text())
    rewritten(folder, lambda about: about.update(smoothing=0.25))
    with pytest.raises(ValueError, match="the files are not those that were saved"):
        load_member(folder)


def content(blob, whole, counters=True):
    """A .skops archive as earlier versions read it; ``whole`` for the first one, which made one digest of all
    values."""
    archive = zipfile.ZipFile(io.BytesIO(blob))

    def of(node):
        if isinstance(node, list):
            return [of(item) for item in node]
        if not isinstance(node, dict):
            return node
        plain = {key: of(value) for key, value in node.items() if key not in ("__id__", "file")}
        if "file" in node:
            data = archive.read(node["file"])
            if node["file"].endswith(".npy"):
                array = np.load(io.BytesIO(data))
                data = [array[name] for name in array.dtype.names] if array.dtype.names else [array]
            plain["file"] = data if whole else digest(data)
        return plain

    return digest(of(json.loads(archive.read("schema.json"))))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "estimator", [SVC(), ExtraTreesClassifier(2, random_state=0), KNeighborsClassifier(algorithm="kd_tree")]
)
def test_estimators_of_earlier_versions_are_loaded(tmp_path, estimator, whole):
    member = SklearnMember(estimator.fit(X, Y), name="m")
    member.save(tmp_path)
    blob = (tmp_path / "estimator.skops").read_bytes()

    def change(about):
        del about["columns"]
        more = [about[key] for key in ("output", "smoothing", "classes")]
        about["fingerprint"] = digest(["sklearn", content(blob, whole), *more])

    rewritten(tmp_path, change)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_logits(X), member.predict_logits(X))
    assert loaded.fingerprint() == member.fingerprint()
    rewritten(tmp_path, lambda about: about.update(smoothing=0.25))
    with pytest.raises(ValueError, match="the files are not those that were saved"):
        load_member(tmp_path)


@pytest.mark.parametrize("kind", ["lightgbm", "sklearn"])
def test_labels_that_earlier_versions_read_by_place_or_by_name_are_refused(tmp_path, kind):
    """The first version took the label 0 for the first of the classes "2", "1", "0", later ones for the
    last."""
    classes = ["2", "1", "0"]
    if kind == "lightgbm":
        BoostedMember(fitted(kind), classes=classes).save(tmp_path)
    else:
        SklearnMember(SVC().fit(X, Y), classes=classes).save(tmp_path)
    load_member(tmp_path)
    rewritten(tmp_path, lambda about: about.pop("columns"))
    words = (
        r"earlier version \(format 1 without columns\), .* labels \[0, 1, 2\] .* places among the classes "
        r"\['2', '1', '0'\]"
    )
    with pytest.raises(
        ValueError, match=rf"{words}.* Make the member again from its model, with classes= and columns="
    ):
        load_member(tmp_path)


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    SklearnMember(SVC().fit(X, Y)).save(tmp_path)
    rewritten(tmp_path, lambda about: about.update(format=7))
    with pytest.raises(
        ValueError, match=r"member\.json has format 7; this version reads 1\. Load it with the version"
    ):
        load_member(tmp_path)
