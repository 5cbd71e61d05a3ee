"""A student for serving: the data's own labels, saved without pickle, and every unlike sample refused by name."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy.special import log_softmax, softmax
from serving_helpers import frame, of_array, of_images, of_table, of_texts

from ensdistill.data.samples import form
from ensdistill.student.serving import Student, load_student
from ensdistill.teachers.members import SklearnMember


@pytest.mark.parametrize(
    "labels",
    [("a", "b", "c"), (3, 10, -1), (0.5, 1.5, 2.5), (np.int64(4), np.int64(5), np.int64(6))],
    ids=["strings", "integers", "floats", "NumPy"],
)
def test_labels_come_back_as_the_data_had_them(tmp_path, labels):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    student = of_array(labels)
    places = student.predict_logits(x).argmax(1)
    assert len(set(places.tolist())) > 1
    student.save(tmp_path / "s")
    for one in (student, Student.load(tmp_path / "s")):
        expected = np.array(labels)[places]
        assert one.predict(x).tolist() == expected.tolist()
        assert one.predict(x).dtype == expected.dtype


def test_booleans_stay_booleans_and_objects_come_back_by_name(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    student = of_array((False, True))
    assert student.predict(x).dtype == bool
    student.save(tmp_path / "s")
    assert Student.load(tmp_path / "s").predict(x).tolist() == student.predict(x).tolist()
    from decimal import Decimal

    assert set(of_array((Decimal("1.5"), Decimal("2.5"))).predict(x).tolist()) <= {"1.5", "2.5"}


def test_probabilities_logits_and_entropy_are_of_the_scaled_logits():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    plain, scaled = of_array(), of_array(temperature=2.5)
    z = plain.member.predict_logits(x).astype(np.float64)
    np.testing.assert_array_equal(plain.predict_logits(x), z.astype(np.float32))
    np.testing.assert_allclose(scaled.predict_logits(x), z / 2.5, rtol=1e-6)
    p = softmax(z / 2.5, axis=1)
    np.testing.assert_allclose(scaled.predict_proba(x), p, rtol=1e-5)
    np.testing.assert_allclose(scaled.entropy(x), -(p * log_softmax(z / 2.5, axis=1)).sum(1), rtol=1e-5)
    assert scaled.predict_proba(x).dtype == scaled.entropy(x).dtype == np.float32


@pytest.mark.parametrize(
    "made", [pd.DataFrame, pl.DataFrame, pa.Table.from_pandas], ids=["pandas", "polars", "arrow"]
)
def test_frames_of_all_libraries_are_one(tmp_path, made):
    student, new = of_table(), frame(30, seed=1)
    expected = student.predict_proba(new)
    student.save(tmp_path / "s")
    # Columns in another order are found by name.
    np.testing.assert_array_equal(
        load_student(tmp_path / "s").predict_proba(made(new[new.columns[::-1]])), expected
    )


def test_images_and_texts_and_large_arrays_are_predicted_in_parts():
    x = np.random.default_rng(0).normal(size=(20000, 3)).astype(np.float32)
    student = of_array()
    np.testing.assert_allclose(student.predict_logits(x), student.member.predict_logits(x), rtol=1e-6)
    images = [np.full((8, 8), value, np.uint8) for value in (0, 100, 200)]
    np.testing.assert_allclose(
        of_images().predict_proba(np.stack(images)), of_images().predict_proba(images), rtol=1e-6
    )
    texts = ["a red fox", "a hen", "one more"]
    assert of_texts().predict(pd.Series(texts)).tolist() == of_texts().predict(texts).tolist()


class Numbers(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def test_a_lazy_data_set_is_read_batch_by_batch():
    x = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    student = of_array()
    np.testing.assert_allclose(student.predict_proba(Numbers(x)), student.predict_proba(x), rtol=1e-6)


def test_members_with_classes_in_another_order_are_read_by_name():
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).normal(size=(60, 2))
    y = np.array(["a", "b", "c"])[(x[:, 0] > 0).astype(int) + (x[:, 1] > 0)]
    model = LogisticRegression().fit(x, y)
    student = Student(SklearnMember(model), ("c", "b", "a"), ("c", "b", "a"), form(x))
    np.testing.assert_allclose(student.predict_proba(x), model.predict_proba(x)[:, ::-1], atol=1e-5)
    assert student.predict(x).tolist() == model.predict(x).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="age"),
            r"'age' is missing: the student's columns are age, rooms, city, own",
        ),
        (
            lambda t: t.rename(columns={"city": "City"}),
            r"'city' is missing \(nearest: 'City'\); 'City' is not expected",
        ),
        (lambda t: t.assign(extra=1), r"'extra' is not expected: the student's columns are"),
        (lambda t: t.assign(age="old"), r"column 'age': expected numbers; row 0 has 'old' \(40 such rows\)"),
        (lambda t: t.assign(city=1), r"column 'city': expected texts; row 0 has 1 \(40 such rows\)"),
        (lambda t: t.assign(own="maybe"), r"column 'own': expected True or False; row 0 has 'maybe'"),
        (lambda t: t.assign(own=1), r"column 'own': expected True or False; row 0 has 1"),
        (
            lambda t: t.assign(age=t.age.where(t.index != 11, np.inf)),
            r"column 'age': expected numbers; row 11 has inf ",
        ),
        (
            lambda t: t.assign(age=t.age.astype(object).where(t.index != 7, "seven")),
            r"column 'age': expected numbers; row 7 has 'seven' \(1 such rows\)",
        ),
        (lambda t: t.iloc[:0], "expected at least one; got none"),
        (lambda t: np.zeros((3, 4)), "expected a frame with named columns; got an array"),
    ],
)
def test_unlike_tables_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        of_table().predict(change(frame()))


def test_alike_columns_are_taken():
    student, table = of_table(), frame()
    expected = student.predict_proba(table)
    same = table.assign(city=table.city.astype("category"), rooms=table.rooms.astype(float))
    np.testing.assert_array_equal(student.predict_proba(same), expected)
    student.predict(table.assign(age=None, city=None))  # a column without a value has no type of its own


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 4), np.float32), r"expected an array \[N, 3\]; got \[2, 4\]"),
        (np.zeros(3, np.float32), r"expected an array \[N, 3\]; got \[3\]: one row is an array of one row"),
        (np.zeros((2, 3), np.uint8), "expected float32, as in training; got uint8"),
        (np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), r"row 1 holds NaN or infinity \(1 such rows\)"),
        (["a text"], "expected an array of numbers; got a list of strings"),
        ([], "expected at least one; got none"),
    ],
)
def test_unlike_arrays_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        of_array().predict(samples)


def test_a_newer_version_and_folders_that_hold_no_student_are_refused(tmp_path):
    of_array().save(tmp_path / "s")
    about = json.loads((tmp_path / "s/student.json").read_text())
    (tmp_path / "s/student.json").write_text(json.dumps({**about, "format": 7, "version": "9.1.0"}))
    with pytest.raises(
        ValueError, match=r"written by ensdistill 9.1.0 \(format 7\).*pip install --upgrade ensdistill"
    ):
        load_student(tmp_path / "s")
    (tmp_path / "s/student.json").write_text("[]")
    with pytest.raises(ValueError, match="expected the description of a student"):
        load_student(tmp_path / "s")
    (tmp_path / "s/student.json").write_text(
        json.dumps({key: about[key] for key in about if key != "labels"})
    )
    with pytest.raises(ValueError, match="labels is missing"):
        load_student(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no student: there is no student\.json"):
        load_student(tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no file or folder"):
        load_student(tmp_path / "nothing")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder with student\.json"):
        load_student(tmp_path / "file.txt")


def test_wrong_labels_and_temperatures_are_refused():
    with pytest.raises(ValueError, match="labels: expected 3, one for each class; got 2"):
        Student(of_array().member, ("a", "b", "c"), ("a", "b"), form(np.zeros((1, 3))))
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature: expected a positive number"):
            of_array(temperature=wrong)


def test_a_damaged_description_has_its_own_remedy(tmp_path):
    of_array().save(tmp_path / "s")
    (tmp_path / "s" / "student.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"student\.json is damaged: it is not JSON\. In a run's folder delete it"
    ):
        load_student(tmp_path / "s")
