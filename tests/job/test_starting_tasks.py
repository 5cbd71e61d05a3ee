"""From arrays and folders to settings of several labels and of numbers: findings and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ensdistill.common.errors import WrongArgument
from ensdistill.job.starting import look, settings_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype(np.float32)
TAGS = (X[:, :3] + RNG.normal(size=(80, 3)) > 0).astype(np.int64)
PRICES = X[:, 0] * 100.5 + 7


def saved(folder, y):
    np.savez(folder / "both.npz", X=X, y=y)
    return folder / "both.npz"


@pytest.mark.parametrize(
    ("y", "task", "count", "reason"),
    [
        (TAGS, "multilabel", 3, "it has 3 columns of 0 and 1"),
        (np.where(TAGS == 0, np.nan, TAGS), "multilabel", 3, "it has 3 columns of 0 and 1"),
        (PRICES, "regression", 1, "fractions among them"),
        (np.stack([PRICES, X[:, 1]], 1), "regression", 2, "it has 2 columns of numbers"),
    ],
)
def test_the_task_of_an_array_is_found_and_printed(tmp_path, y, task, count, reason):
    found = look(saved(tmp_path, y))
    known = int((~np.isnan(y.reshape(80, -1))).any(1).sum())
    assert (found.labels.task, found.labels.count, found.known) == (task, count, known)
    assert found.data["init_args"]["task"] == task
    assert any(word == "task" and reason in text for word, text in found.facts)
    settings, _ = settings_of(found)
    assert settings["teachers"]["members"][0]["init_args"]["name"] == "boosting"
    split = settings_split(found)
    assert (split.task, split.labelled.labels.shape[1]) == (task, count)
    assert abs(len(split.test) - known / 4) <= 1


def settings_split(found):
    from ensdistill.data import ArrayDataset

    assert found.data["class_path"] == "ArrayDataset"
    return ArrayDataset(**found.data["init_args"]).split(0)


def test_a_stated_task_decides(tmp_path):
    whole = np.arange(80) % 7
    assert look(saved(tmp_path, whole)).labels.task == "classification"
    assert look(saved(tmp_path, whole), task="regression").labels.task == "regression"
    one_hot = np.eye(3, dtype=np.int64)[np.arange(80) % 3]
    with pytest.raises(ValueError, match=r"^--task: .* has one 1 in each row: state multilabel if .*argmax"):
        look(saved(tmp_path, one_hot))
    assert look(saved(tmp_path, one_hot), task="multilabel").labels.count == 3
    with pytest.raises(ValueError, match=r"^labels: .*expected 0 or 1 for each label"):
        look(saved(tmp_path, PRICES[:, None] + np.zeros(2)), task="multilabel")
    with pytest.raises(ValueError, match=r"^--separator: expected with a table"):
        look(saved(tmp_path, TAGS), separator=",")
    with pytest.raises(ValueError, match=r"expected at least 6 rows with a label; got 3"):
        look(saved(tmp_path, np.where(np.arange(80) < 3, PRICES, np.nan)), task="regression")


def test_labels_of_classes_that_are_others_name_the_other_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"up to 790.* if they are quantities, state the task regression"):
        look(saved(tmp_path, np.arange(80) * 10))
    with pytest.raises(ValueError, match=r"got int64 \[80, 3\]; one-hot rows are labels.argmax\(1\); sev"):
        look(saved(tmp_path, TAGS), task="classification")
    with pytest.raises(WrongArgument, match=r"^--task: expected one of classification, multilabel"):
        look(saved(tmp_path, TAGS), task="multi-label")


def test_rows_without_tags_are_printed_as_unknown(tmp_path):
    tags = ["red", "", "red;blue", ";", "blue"] * 8
    lines = [f"{x:.3f},{tag}" for x, tag in zip(X[:40, 0], tags, strict=True)]
    (tmp_path / "tags.csv").write_text("\n".join(["x,tags", *lines]))
    found = look(tmp_path / "tags.csv", target="tags", separator=";")
    assert (found.known, found.unlabelled) == (32, 8)
    text = "8 without tags, which are unknown (the pool); ';' alone states that none applies"
    assert text in dict(found.lines())["rows"]


def test_class_folders_have_no_other_task(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    assert look(tmp_path).labels.task == "classification"
    with pytest.raises(ValueError, match=r"^--task: expected a table .* column of the files' paths"):
        look(tmp_path, task="multilabel")
