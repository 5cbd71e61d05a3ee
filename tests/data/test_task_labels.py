"""Labels of the three tasks: how rows hold them, how they are made and split, and what a target looks like."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ensdistill.common.tasks import check_task, task_of
from ensdistill.data import (
    ArrayDataset,
    ImageFolder,
    Partition,
    Rows,
    Split,
    Table,
    Texts,
    as_multilabels,
    as_numbers,
    from_tags,
    guess_task,
    stratified_split,
)
from ensdistill.data.partition import Whole

TASKS = ("multilabel", "regression")


def labels_for(task, rows=60, seed=0):
    generator = np.random.default_rng(seed)
    if task == "multilabel":
        return generator.integers(0, 2, (rows, 3)).astype(np.int8)
    return generator.normal(size=(rows, 3))


def rows_for(task, count=60, start=0, **more):
    inputs = np.arange(start, start + count, dtype=np.float32)[:, None]
    return Rows(inputs, np.arange(start, start + count), labels_for(task, count, start), **more)


def test_a_word_names_the_task():
    assert task_of(object()) == "classification"
    with pytest.raises(
        ValueError, match=r"^task: expected one of classification, multilabel, regression; got"
    ):
        check_task("softmax")


@pytest.mark.parametrize("task", TASKS)
def test_rows_hold_the_labels_of_each_task(task):
    rows = rows_for(task)
    assert rows.task == task
    assert rows.known.all()
    bare = rows.without_labels()
    assert (bare.task, bare.known.any(), bare.labels.shape) == (task, False, (60, 3))
    np.testing.assert_array_equal(rows.take(np.array([5, 2])).labels, rows.labels[[5, 2]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 3), np.int64), r"^labels: expected int64 \[2\] .* got int64 \[2, 3\]: as_multilabels"),
        (np.zeros((3, 3), np.int8), r"^labels: expected int64 \[2\] .* got int8 \[3, 3\]"),
        (np.array([[0, 1], [2, 0]], np.int8), r"^labels: expected 0, 1, or -1 .* row 1 has \[2, 0\]"),
        (np.array([[0.0, np.inf], [1, 2]]), r"^labels: expected finite numbers.* row 0 has \[0.0, inf\]"),
        (np.array([[0.0, 1], [np.nan, 2]]), r"^labels: .* or NaN in the whole row; row 1 has \[nan, 2.0\]"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Rows(np.zeros((2, 1), np.float32), np.arange(2), labels)


def test_unknown_labels_have_one_form():
    for given in (
        [[1, None], [0, 1]],
        [[1.0, np.nan], [0, 1]],
        [[1, -1], [0, 1]],
        [["yes", ""], ["false", "1"]],
    ):
        np.testing.assert_array_equal(as_multilabels(given), np.array([[1, -1], [0, 1]], np.int8))
    frame = pd.DataFrame({"a": [True, None], "b": pd.array([None, 0], "Int64")})
    assert as_multilabels(frame).tolist() == [[1, -1], [-1, 0]]
    with pytest.raises(ValueError, match=r"^y: expected 0 or 1 .* row 1 has 0\.5 in column 0"):
        as_multilabels([[1, 0], [0.5, 0]], argument="y")


def test_numbers_have_one_form():
    frame = pd.DataFrame({"a": pd.array([1, None, 3], "Int64"), "b": [0.5, None, 2]})
    np.testing.assert_array_equal(as_numbers(frame), [[1, 0.5], [np.nan, np.nan], [3, 2]])
    assert as_numbers(pd.Series([1, 2])).shape == (2, 1)
    with pytest.raises(ValueError, match=r"row 2 has \['abc'\] \(1 such rows\)"):
        as_numbers(pd.Series(["1.5", "2", "abc"]))  # as a table reads a column with one text
    for given, message in (
        (["a", "b"], r"expected a number in each row.* row 0 has \['a'\]"),
        ([1.0, np.inf], "expected finite numbers"),
        ([[1.0, np.nan], [2, 3]], "expected all numbers of a row, or none; row 0"),
        ([np.nan, np.nan], "2 rows, all without one"),
        ([2.0, 2.0], "expected different numbers; column 0 has 2 in all 2 rows"),
    ):
        with pytest.raises(ValueError, match=rf"^labels: .*{message}"):
            as_numbers(given)


def test_tags_become_labels():
    labels, names = from_tags(["b|a", "c", None, ""], "|", ["c", "a"])
    assert (labels.tolist(), names) == ([[0, 1], [1, 0], [-1, -1], [0, 0]], ("c", "a"))
    for column, more, message in (
        (["a", 3], {}, r"^target: expected tags.* row 1 has 3"),
        (["a"], {"order": ["b"]}, r"^target: expected some of the tags \['b'\]"),
        (["a"], {"separator": ""}, "^separator: expected the characters"),
        (["a"], {"order": ["a", "a"]}, "^labels: expected different names"),
    ):
        with pytest.raises(ValueError, match=message):
            from_tags(column, **more)


@pytest.mark.parametrize("task", TASKS)
def test_parts_are_drawn_at_random_and_groups_stay_together(task):
    groups = np.arange(60) // 4
    rows = rows_for(task, groups=groups)
    rows.labels[50:] = rows.without_labels().labels[50:]
    whole = Whole(rows, ("a", "b", "c"), ("a", "b", "c"))
    split = Partition(test=12, pool=8).split(whole, seed=3)
    assert split.task == task
    assert not split.pool.known.any()
    assert len(split.pool) + len(split.labelled) + len(split.test) + split.left_out == 60
    parts = [set(groups[part.uids]) for part in (split.labelled, split.pool, split.test)]
    assert not parts[2] & (parts[0] | parts[1])
    tested = [Partition(folds=3).split(whole, seed).test.uids for seed in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(50))


@pytest.mark.parametrize("task", TASKS)
def test_arrays_are_split_by_seed(task, tmp_path):
    labels = labels_for(task).astype(np.float64)
    labels[40:] = np.nan
    np.save(tmp_path / "x.npy", np.arange(120, dtype=np.float32).reshape(60, 2))
    np.save(tmp_path / "y.npy", labels)
    data = ArrayDataset(tmp_path / "x.npy", tmp_path / "y.npy", 20, 5, task=task, classes=["u", "v", "w"])
    split = data.split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (20, 25, 15)
    assert (split.task, split.classes) == (task, ("u", "v", "w"))
    np.testing.assert_array_equal(split.test.labels, labels[split.test.uids])
    assert data.split(1).test.uids.tolist() != split.test.uids.tolist()
    with pytest.raises(ValueError, match=r"^classes: expected 3 names"):
        ArrayDataset(tmp_path / "x.npy", tmp_path / "y.npy", 20, task=task, classes=["u"]).split(0)


def test_parts_of_unlike_tasks_are_refused():
    parts = (
        rows_for("multilabel", 4),
        rows_for("multilabel", 4, 4).without_labels(),
        rows_for("regression", 4, 8),
    )
    with pytest.raises(ValueError, match=r"^test\.labels: expected labels of multilabel, .* got regression$"):
        Split(*parts, ("a", "b", "c"))
    parts = parts[0], parts[1], rows_for("multilabel", 4, 8)
    with pytest.raises(ValueError, match=r"^labelled\.labels: expected 2 columns"):
        Split(*parts, ("a", "b"))
    with pytest.raises(ValueError, match=r"^pool\.labels: expected no known label, because the pool has no"):
        Split(parts[0], rows_for("multilabel", 4, 4), parts[2], ("a", "b", "c"))
    with pytest.raises(
        ValueError, match=r"^test\.labels: expected a known label in each row; row 0 \(uid 8\)"
    ):
        Split(*parts[:2], parts[2].without_labels(), ("a", "b", "c"))
    one = stratified_split(
        np.arange(9.0)[:, None], np.arange(9.0)[:, None], ["y"], labelled=3, pool=0, test=3, seed=0
    )
    assert one.classes == ("y",)


@pytest.fixture
def table(tmp_path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"x": np.arange(40.0), "u": generator.integers(0, 2, 40), "v": 1})
    frame["price"] = generator.normal(size=40).round(3).astype(str)
    frame.loc[30:, "price"] = "NA"
    frame["area"] = np.where(np.arange(40) < 30, np.arange(40.0) ** 2, np.nan)
    frame["tags"] = np.where(np.arange(40) % 2, "a; b", "c")
    frame.loc[3, "tags"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_tables_have_several_target_columns(table):
    split = Table(table, ["u", "v"], columns=["x"], task="multilabel").split(0)
    assert (split.task, split.classes, len(split.labelled)) == ("multilabel", ("u", "v"), 30)
    assert (split.test.labels[:, 1] == 1).all()
    split = Table(table, ["price", "area"], ignore=["u", "v", "tags"], task="regression").split(0)
    assert (split.task, split.classes, len(split.pool)) == ("regression", ("price", "area"), 10)
    np.testing.assert_array_equal(split.test.labels[:, 1], split.test.inputs.batch["x"].to_numpy() ** 2)
    split = Table(table, "price", columns=["x"], task="regression").split(0)
    assert split.labelled.labels.shape[1:] == (1,)


def test_tables_have_a_column_of_tags(table):
    split = Table(table, "tags", columns=["x"], separator=";").split(0)
    assert (split.task, split.classes, len(split.pool)) == ("multilabel", ("a", "b", "c"), 1)
    assert split.test.labels[:, 0].tolist() == split.test.labels[:, 1].tolist()
    assert Table(table, "tags", columns=["x"], separator=";", labels=["c", "b"]).split(0).classes == (
        "c",
        "b",
    )


def test_texts_and_images_have_targets_of_each_task(tmp_path):
    lines = [{"text": f"text {i}", "label": ["a", "b"] if i % 2 else []} for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    split = Texts(tmp_path / "t.jsonl", separator=",").split(0)
    assert split.classes == ("a", "b")
    assert set(map(tuple, split.labelled.labels.tolist())) == {(0, 0), (1, 1)}
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ValueError, match=r"^task: expected a table of paths or texts for a target of regression"
    ):
        ImageFolder(tmp_path / "folder", task="regression").split(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["u", "v"]}, "^task: expected multilabel or regression beside 2 .* look like multilabel"),
        ({"target": ["u", "v"], "task": "classification"}, "^task: expected multilabel or regression for 2"),
        ({"target": "u", "task": "multilabel"}, "^separator: expected the characters between two tags"),
        ({"target": ["u", "v"], "separator": ","}, "^separator: expected with one column of tags"),
        ({"target": "price", "task": "regression", "separator": ","}, "^separator: .* got task regression"),
        ({"target": ["u", "v"], "task": "multilabel", "labels": ["u"]}, "^labels: expected none beside"),
        ({"target": ["u", "u"], "task": "multilabel"}, "^target: expected different columns"),
        ({"target": ["u", "w"], "task": "multilabel"}, "^target: t.csv has no column 'w'"),
        ({"target": ["u", "x"], "task": "multilabel"}, r"^target: .* expected 0 or 1 for each label"),
        ({"target": "price", "columns": ["x"]}, "^target: .* state regression as the task"),
        ({"target": ["u", "v"], "task": "multilabel", "columns": ["u"]}, "^columns: 'u' is the target"),
    ],
)
def test_targets_that_contradict_their_task_are_refused(table, settings, message):
    with pytest.raises(ValueError, match=message):
        Table(table, **settings).split(0)


@pytest.mark.parametrize(
    ("target", "task", "reason"),
    [
        (["a", "b", None], "classification", "2 different names"),
        ([True, False], "classification", "2 different names"),
        (np.arange(10) % 3, "classification", "3 different whole numbers"),
        ([0.5, 1, 1], "regression", "2 different numbers, fractions among them"),
        (np.arange(60), "regression", "60 different numbers in 60 rows"),
        (np.tile(np.arange(60), 10), "classification", "60 different whole numbers"),
        (np.eye(3), "multilabel", "3 columns of 0 and 1"),
        (pd.DataFrame({"a": [True, False], "b": [None, 1]}), "multilabel", "2 columns of 0 and 1"),
        (np.random.default_rng(0).normal(size=(5, 2)), "regression", "2 columns of numbers"),
    ],
)
def test_a_task_is_guessed_with_its_reason(target, task, reason):
    guess = guess_task(target)
    assert guess.task == task
    assert (
        str(guess) == f"task: {task}, because it {'has' if np.ndim(target) == 2 else 'holds'} {reason}; "
        "task= (--data.task) decides otherwise"
    )


def test_no_task_is_guessed_of_gaps_or_of_several_texts():
    with pytest.raises(ValueError, match=r"^target: expected values in each column"):
        guess_task([None, None])
    with pytest.raises(ValueError, match=r"^target: .* column 'b' of 2 holds texts"):
        guess_task(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))


def test_rows_need_no_pandas():
    code = "import sys, ensdistill.data; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
