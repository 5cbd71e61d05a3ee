"""Tables as data sets: roles of columns, files of every format, parts of their own, and what is refused."""

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ensdistill.data import Partition, Table
from ensdistill.data.copies import count_copies
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.samples import Held, sample_hashes, whole

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"
ROWS = 60


def frame(**changes):
    number = np.arange(ROWS)
    columns = {
        "age": number * 3 % 50,
        "income": np.where(number == 4, np.nan, number * 0.1 + 0.7),
        "city": [None if i == 7 else f"c{i % 5}" for i in number],
        "own": number % 4 == 1,
        "species": [["cat", "dog", "owl"][i % 3] for i in number],
    }
    return pd.DataFrame({**columns, **changes})


def saved(folder, table, name="t.csv"):
    path = folder / name
    writers = {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: path.write_text(
            "\n".join(
                json.dumps({name: None if pd.isna(value) else value for name, value in row.items()})
                for row in table.to_dict("records")
            )
        ),
        ".parquet": lambda: table.to_parquet(path, row_group_size=25),
        ".feather": lambda: table.to_feather(path),
    }
    writers[path.suffix]()
    return path


def test_the_penguins_are_read_as_they_are():
    split = Table(PENGUINS, "species", parts=Partition(test=0.3, pool=0.2)).split(seed=1)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (172, 69, 103)
    assert split.classes == ("Adelie", "Chinstrap", "Gentoo")
    table = pd.read_csv(PENGUINS)
    inputs = split.test.inputs[:]
    assert list(inputs.columns) == list(table.columns.drop("species"))
    found = inputs.assign(species=[split.labels[i] for i in split.test.labels])
    both = found.merge(table.drop_duplicates(), how="left", indicator=True)
    assert (both["_merge"] == "both").all()
    share = np.bincount(split.test.labels) / 103
    assert np.abs(share - table.species.value_counts(normalize=True).sort_index().to_numpy()).max() < 0.01


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.feather"])
def test_every_format_gives_the_same_split(tmp_path, name):
    expected = Table(saved(tmp_path, frame(), "first.csv"), "species").split(0)
    split = Table(str(saved(tmp_path, frame(), name)), "species").split(0)
    for part in ("labelled", "test"):
        ours, theirs = getattr(split, part), getattr(expected, part)
        np.testing.assert_array_equal(ours.uids, theirs.uids)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(sample_hashes(ours.inputs), sample_hashes(theirs.inputs))


def test_uids_stay_where_rows_are_added(tmp_path):
    first = Table(saved(tmp_path, frame()), "species").whole.rows
    more = pd.concat([frame().iloc[::-1], frame(age=99)])
    second = Table(saved(tmp_path, more, "more.csv"), "species").whole.rows
    np.testing.assert_array_equal(second.uids[:ROWS][::-1], first.uids)
    assert len(np.unique(second.uids)) == 2 * ROWS


def test_columns_have_roles(tmp_path):
    table = frame(
        key=[f"k{i}" for i in range(ROWS)],
        counts=np.arange(ROWS) / 2,
        owner=np.arange(ROWS) // 2,
        day=pd.date_range("2020-01-01", periods=ROWS).strftime("%Y-%m-%d"),
    )
    data = Table(
        saved(tmp_path, table),
        "species",
        id="key",
        weight="counts",
        ignore=["day"],
        parts=Partition(group="owner", test=0.3),
    )
    split = data.split(0)
    assert list(split.labelled.inputs[:1].columns) == ["age", "income", "city", "own"]
    rows = data.whole.rows
    np.testing.assert_array_equal(rows.weights, np.arange(ROWS) / 2)
    assert not np.intersect1d(split.labelled.groups, split.test.groups).size
    assert len(np.unique(rows.uids)) == ROWS
    by_time = replace(data, ignore=["owner"], parts=Partition(time="day", test=15)).split(0)
    np.testing.assert_array_equal(by_time.test.uids, rows.uids[45:])
    chosen = replace(data, columns=["own", "age"], id=None, weight=None).split(0)
    assert list(chosen.test.inputs[:1].columns) == ["own", "age"]


def test_rows_without_a_label_are_the_pool(tmp_path):
    species = [None if i % 5 == 0 else i % 3 + 1 for i in range(ROWS)]
    split = Table(saved(tmp_path, frame(species=species)), "species").split(0)
    assert (len(split.pool), split.left_out) == (12, 0)
    assert (split.classes, split.labels) == (("1", "2", "3"), (1, 2, 3))


def test_a_word_for_a_missing_value_may_be_a_class(tmp_path):
    pain = [["None", "some", "much", ""][i % 4] for i in range(ROWS)]
    path = saved(tmp_path, frame(species=pain))
    with pytest.raises(
        ValueError,
        match=r"^target: column 'species' holds 'None' in row 0 \(15 such rows\), .*If it is unknown, give --data\.unlabelled '\[None\]' on",
    ):
        Table(path, "species").split(0)
    assert Table(path, "species", unlabelled=[]).split(0).classes == ("None", "much", "some")
    split = Table(path, "species", unlabelled=["None"]).split(0)
    assert (split.classes, len(split.pool)) == (("much", "some"), 30)
    numbers = saved(tmp_path, frame(species=["NA" if i == 3 else str(i % 12) for i in range(ROWS)]))
    assert Table(numbers, "species").split(0).labels == tuple(range(12))


def test_words_for_missing_inputs_may_be_named(tmp_path):
    path = saved(tmp_path, frame(city=["NA" if i % 2 else "?" for i in range(ROWS)]))
    gaps = {None: 30, ("?",): 30, (): 0}
    for missing, count in gaps.items():
        inputs = Table(path, "species", missing=None if missing is None else list(missing)).whole.rows.inputs[
            :
        ]
        assert inputs.city.isna().sum() == count
    assert set(Table(path, "species", missing=["?"]).whole.rows.inputs[:].city.dropna()) == {"NA"}


def test_classes_are_in_the_given_order(tmp_path):
    path = saved(tmp_path, frame())
    assert Table(path, "species", labels=["owl", "cat", "dog"]).split(0).classes == ("owl", "cat", "dog")
    with pytest.raises(
        ValueError, match=r"^labels: expected at least 2 rows of each class, .* 'yak' has 0: leave"
    ):
        Table(path, "species", labels=["owl", "cat", "dog", "yak"]).split(0)
    grade = pd.Categorical(frame().species, ["owl", "dog", "cat"], ordered=True)
    kept = Table(saved(tmp_path, frame(species=grade), "t.parquet"), "species").split(0)
    assert kept.classes == ("owl", "dog", "cat")
    with pytest.raises(
        ValueError, match=r"^labels: expected all labels of target: .* among cat, dog; 'owl' is not"
    ):
        Table(path, "species", labels=["cat", "dog"]).split(0)


def test_given_files_are_the_parts(tmp_path):
    table = frame(city=[f"c{i}" for i in range(ROWS)])
    train = saved(tmp_path, table.iloc[:30], "train.csv")
    # In these files a column of integers has a gap, and a column of strings is empty.
    gap = table.iloc[30:45].assign(age=[None, *range(14)], city=None, more=1)
    test = saved(tmp_path, gap, "test.csv")
    pool = saved(tmp_path, table.iloc[45:].drop(columns="species"), "pool.csv")
    split = Table(train, "species", test_path=test, pool_path=pool, parts=Partition(pool=0.5)).split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (15, 15 + 15, 15)
    assert split.test.inputs[:].age.isna().sum() == 1
    column = np.repeat(["train", "TEST", "pool", ""], [20, 15, 10, 15])
    own = Table(saved(tmp_path, frame(part=column)), "species", parts=Partition(column="part")).split(0)
    assert (len(own.labelled), len(own.pool), len(own.test)) == (35, 10, 15)
    with pytest.raises(ValueError, match=r"^test_path: expected without parts\.test, because both decide"):
        Table(train, "species", test_path=test, parts=Partition(test=0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"age": "old"},
            r"^columns: 'age' holds integer in train\.csv, and text in test\.csv: make them alike$",
        ),
        ({"species": "yeti"}, r"^labelled: no row of class 'yeti' among the 60, but test rows of it"),
        (
            {"species": None},
            r"^test: expected a label for each of its 60 rows; row 0 of these \(60 of all\) has none \(60",
        ),
    ],
)
def test_a_test_file_that_does_not_fit(tmp_path, change, words):
    train, test = saved(tmp_path, frame(), "train.csv"), saved(tmp_path, frame(**change), "test.csv")
    with pytest.raises(ValueError, match=words):
        Table(train, "species", test_path=test).split(0)


def test_a_test_file_without_a_column(tmp_path):
    train = saved(tmp_path, frame(), "train.csv")
    test = saved(tmp_path, frame().drop(columns="age"), "test.csv")
    with pytest.raises(ValueError, match=r"^columns: test\.csv has no column 'age', but income, city"):
        Table(train, "species", test_path=test).split(0)


def test_parquet_may_be_read_when_it_is_needed(tmp_path):
    table = pd.concat([frame(), frame()])
    train = saved(tmp_path, table, "t.parquet")
    pool = saved(tmp_path, frame(age=77).drop(columns="species"), "p.parquet")
    held = Table(train, "species", pool_path=pool, parts=Partition(pool=20)).split(0)
    lazy = Table(train, "species", pool_path=pool, parts=Partition(pool=20), lazy=True).split(0)
    assert isinstance(held.test.inputs, Held)
    assert isinstance(lazy.test.inputs.samples, ParquetSamples)
    for part in ("labelled", "pool", "test"):
        ours, theirs = getattr(lazy, part), getattr(held, part)
        np.testing.assert_array_equal(ours.uids, theirs.uids)
        pd.testing.assert_frame_equal(
            whole(ours.inputs).reset_index(drop=True), theirs.inputs[:].reset_index(drop=True)
        )
    assert not count_copies(lazy).test.any()
    with pytest.raises(ValueError, match=r"^lazy: expected Parquet, .* got t\.csv$"):
        Table(saved(tmp_path, frame()), "species", lazy=True).split(0)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"target": "specie"}, r"^target: t\.csv has no column 'specie', .*; did you mean 'species'\?$"),
        ({}, {"ignore": ["agee"]}, r"^ignore: t\.csv has no column 'agee', .* did you mean 'age'\?$"),
        ({}, {"columns": ["agee"]}, r"^columns: t\.csv has no column 'agee', .* did you mean 'age'\?$"),
        ({}, {"parts": Partition(group="agee")}, r"^parts\.group: t\.csv has no column 'agee'"),
        ({}, {"columns": ["age", "species"]}, r"^columns: 'species' is the target, and no input$"),
        (
            {},
            {"ignore": ["age", "income", "city", "own"]},
            r"^columns: t\.csv has no column that is an input",
        ),
        ({"": range(ROWS)}, {}, r"^columns: column 6 of t\.csv has no name; .* ignore: \[''\]$"),
        (
            {},
            {"id": "age"},
            r"^id: column 'age': expected ids that are all different; that of row 50, 0, stands 2",
        ),
        (
            {},
            {"id": "income"},
            r"^id: column 'income': expected an id for each sample; that of row 4 is missing$",
        ),
        ({}, {"weight": "income"}, r"^weight: column 'income': expected finite numbers .* row 4 has nan"),
        (
            {},
            {"weight": "city"},
            r"^weight: column 'city': expected 60 numbers; row 0 has 'c0' \(59 such rows\)",
        ),
        ({"w": 0}, {"weight": "w"}, r"^weight: column 'w': expected a number above 0 .*; all 60 are 0$"),
        (
            {"key": ["a", None, *map(str, range(2, ROWS))]},
            {"id": "key"},
            r"^id: column 'key': expected an id for each sample; that of row 1 is missing$",
        ),
        (
            {},
            {"parts": Partition(group="city")},
            r"^parts\.group: column 'city': .* row 7 has none \(1 such rows\)$",
        ),
        ({}, {"parts": Partition(time="city")}, r"^parts\.time: column 'city': .* row 7 has none"),
        (
            {},
            {"parts": Partition(column="city")},
            r"^parts\.column: column 'city': expected train, pool, test or",
        ),
        ({"species": np.arange(ROWS) / 7}, {}, r"^target: column 'species': .*regression's target, 0\.14"),
        (
            {"species": range(ROWS)},
            {},
            r"^target: .* 60 different numbers in 60 rows\. Only classes can be learned",
        ),
        ({"species": None}, {}, r"^target: column 'species': expected labels; got 60 rows, all without one$"),
        ({"species": "cat"}, {}, r"^target: .* expected at least two classes; all labels are 'cat'$"),
        (
            {"species": ["cat"] * 59 + ["dog"]},
            {},
            r"^labels: expected at least 2 rows of each class, .* 'dog' has 1",
        ),
        (
            {"day": "2020-12-31"},
            {},
            r"^columns: column 'day' holds dates or times, .*ignore.*year, month, weekday",
        ),
    ],
)
def test_what_a_table_cannot_be(tmp_path, changes, options, words):
    path = saved(tmp_path, frame(**changes))
    with pytest.raises(ValueError, match=words):
        Table(path, **{"target": "species", **options}).split(0)


@pytest.mark.parametrize(
    "text",
    [
        *("05 Jan 2020", "5-Jan-20", "5 January 2020", "Jan 5, 2020", "Sun, 05 Jan 2020 14:03:00 +0000"),
        *(
            "14:03:00",
            "14:03",
            "2:03 PM",
            "14:03:00.25",
            "2020/01/05",
            "05.01.2020 14:03",
            "2020-01-05T14:03:00Z",
        ),
    ],
)
def test_dates_and_times_of_every_form_are_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"^columns: column 'when' holds dates or times"):
        Table(saved(tmp_path, frame(when=text)), "species").split(0)


def test_texts_that_look_like_parts_of_dates_are_categories(tmp_path):
    texts = ["May", "5 Janes 2020", "a 14:03", "14 of 20", "1.2.3.4", "Sun", "3:1", "2020", "5 Mar", "x-1-2"]
    path = saved(tmp_path, frame(text=texts * (ROWS // 10)))
    assert "text" in Table(path, "species").split(0).test.inputs[:].columns


@pytest.mark.parametrize("options", [{}, {"lazy": True}])
def test_texts_that_are_nearly_all_different_are_named_in_a_warning(tmp_path, options):
    table = pd.concat([frame()] * 2, ignore_index=True)
    path = saved(tmp_path, table.assign(key=[f"k{i}" for i in range(2 * ROWS)]), "t.parquet")
    with pytest.warns(
        UserWarning, match=r"column 'key' are nearly all different \(120 of 120\).*ignore: \[key\]"
    ):
        Table(path, "species", **options).split(0)
    few = saved(tmp_path, table.assign(key=[f"k{i % 100}" for i in range(2 * ROWS)]), "few.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Table(path, "species", ignore=["key"], **options).split(0)
        Table(path, "species", columns=["key", "age"], **options).split(0)
        Table(few, "species", **options).split(0)


def test_columns_of_times_and_lists_are_named(tmp_path):
    path = saved(tmp_path, frame(when=pd.Timestamp("2020-01-01")), "t.parquet")
    with pytest.raises(ValueError, match=r"^columns: column 'when' holds dates or times"):
        Table(path, "species").split(0)
    split = Table(path, "species", columns=["age", "when"]).split(0)  # who names it, wants it
    assert split.test.inputs[:1].when.tolist() == [pd.Timestamp("2020-01-01")]
    lines = [json.dumps({"a": i, "tags": [i], "y": "ab"[i % 2]}) for i in range(8)]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    with pytest.raises(TypeError, match=r"column 'tags': .* got list: "):
        Table(tmp_path / "l.jsonl", "y").split(0)
    for tags in ([[1, 2]] * ROWS, [{"a": 1}] * ROWS, [None] + [[1, 2]] * (ROWS - 1)):
        path = saved(tmp_path, frame(tags=tags), "l.parquet")
        for lazy in (False, True):
            with pytest.raises(TypeError, match=r"^column 'tags': .*: leave .* one column for each entry"):
                Table(path, "species", lazy=lazy).split(0)


def test_a_table_of_too_many_columns_is_refused_before_it_is_read(tmp_path):
    names = ",".join(f"c{i}" for i in range(100_000))
    (tmp_path / "wide.csv").write_text(f"{names},y\n")
    with pytest.raises(
        ValueError, match=r"^columns: expected at most 10000, .* got 100000 in wide\.csv\. Name"
    ):
        Table(tmp_path / "wide.csv", "y").split(0)
    wide = pd.DataFrame(np.zeros((2, 10_001)), columns=[f"c{i}" for i in range(10_001)]).assign(y=["a", "b"])
    wide.to_parquet(tmp_path / "wide.parquet")
    with pytest.raises(ValueError, match=r"^columns: expected at most 10000, .* got 10001 in wide\.parquet"):
        Table(tmp_path / "wide.parquet", "y", lazy=True).split(0)


def test_a_table_that_was_read_travels_without_its_rows():
    data = Table(PENGUINS, "species")
    expected = data.split(0)
    assert len(pickle.dumps(data)) < 1000
    again = pickle.loads(pickle.dumps(data))
    assert again == data
    np.testing.assert_array_equal(again.split(0).test.uids, expected.test.uids)
