"""Texts as data sets: tables and folders of files, as they are written."""

import json

import numpy as np
import pytest

from ensdistill.data import Partition, Texts

ROWS = 20
TEXTS = [f" Text {i}, “quoted”\nand more" for i in range(ROWS)]
LABELS = [["net", "admin"][i % 2] for i in range(ROWS)]


def as_csv(path, texts=TEXTS, labels=LABELS):
    import csv

    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *zip(texts, labels, strict=True)])
    return path


def as_lines(path, texts=TEXTS, labels=LABELS):
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines))
    return path


def as_folder(path, texts=TEXTS, labels=LABELS):
    for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{i:02}.txt").write_text(text)
    return path


@pytest.mark.parametrize(("write", "name"), [(as_csv, "t.csv"), (as_lines, "t.jsonl"), (as_folder, "texts")])
def test_texts_are_read_as_they_are_written(tmp_path, write, name):
    split = Texts(str(write(tmp_path / name)), parts=Partition(test=6, pool=4)).split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (10, 4, 6)
    assert split.classes == ("admin", "net")
    for part in (split.labelled, split.test):
        places = [TEXTS.index(text) for text in part.inputs[:]]
        assert [split.labels[label] for label in part.labels] == [LABELS[place] for place in places]
    assert set(split.pool.inputs[:]) < set(TEXTS)


def test_words_and_numbers_stay_strings(tmp_path):
    words = ["NA", "None", "007", "1.50", "null", *TEXTS[5:]]
    split = Texts(as_csv(tmp_path / "t.csv", words)).split(0)
    assert set(split.labelled.inputs[:]) | set(split.test.inputs[:]) == set(words)


def test_equal_texts_stay_together(tmp_path):
    texts = [f"text {i // 4}" for i in range(40)]
    split = Texts(as_csv(tmp_path / "t.csv", texts, [["a", "b"][i // 4 % 2] for i in range(40)])).split(0)
    assert not set(split.labelled.inputs[:]) & set(split.test.inputs[:])


def test_rows_without_a_label_and_given_files(tmp_path):
    train = as_csv(tmp_path / "a.csv", labels=[*LABELS[:-4], *[""] * 4])
    split = Texts(train).split(0)
    assert set(split.pool.inputs[:]) == set(TEXTS[-4:])
    test = as_folder(tmp_path / "b", [f"{text}!" for text in TEXTS])
    pool = tmp_path / "c"
    pool.mkdir()
    (pool / "one.txt").write_text("one more")
    given = Texts(train, test_path=test, pool_path=pool).split(0)
    assert (len(given.labelled), len(given.pool), len(given.test)) == (ROWS - 4, 5, ROWS)
    assert "one more" in given.pool.inputs[:]


@pytest.mark.parametrize(("write", "name"), [(as_csv, "t.csv"), (as_lines, "t.jsonl"), (as_folder, "texts")])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_text_is_named(tmp_path, write, name, empty):
    path = write(tmp_path / name, [*TEXTS[:3], empty, *TEXTS[4:]])
    where = r"/admin/03\.txt" if name == "texts" else "row 3"
    with pytest.raises(ValueError, match=rf"^path: .*texts that are not empty; .*{where} is \(1 such rows\)"):
        Texts(path).split(0)


def test_what_texts_cannot_be(tmp_path):
    path = as_csv(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"^text: t\.csv has no column 'txt', .* did you mean 'text'\?$"):
        Texts(path, text="txt").split(0)
    with pytest.raises(ValueError, match=r"^target: t\.csv has no column 'section'"):
        Texts(path, target="section").split(0)
    with pytest.raises(ValueError, match=r"^text: expected a column of its own; got 'text'"):
        Texts(path, target="text").split(0)
    lines = as_lines(tmp_path / "n.jsonl", [*TEXTS[:3], 7, *TEXTS[4:]])
    with pytest.raises(ValueError, match=r"^path: .*expected strings; row 3 is 7, a int$"):
        Texts(lines).split(0)
    folder = as_folder(tmp_path / "texts")
    (folder / "net" / "00.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"net/00\.txt: expected UTF-8; got"):
        Texts(folder).split(0)


def test_uids_are_of_the_texts(tmp_path):
    first = Texts(as_csv(tmp_path / "t.csv")).whole.rows
    second = Texts(as_folder(tmp_path / "texts")).whole.rows
    assert set(first.uids) == set(second.uids)
    assert len(np.unique(first.uids)) == ROWS
