"""From data to settings: findings in tables, arrays, and folders, and refusals."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from PIL import Image
from sklearn.datasets import load_wine
from sklearn.naive_bayes import GaussianNB

from ensdistill.data.samples import form
from ensdistill.job.starting import look, settings_of

WINE = load_wine(as_frame=True).frame
DAYS = pd.date_range("2020-01-01", periods=len(WINE))


def arguments(found):
    return found.data["init_args"]


def of_csv(folder, frame, **options):
    file = folder / "rows.csv"
    frame.to_csv(file, index=False)
    return look(file, **options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".feather"])
def test_a_table_of_any_format(suffix, tmp_path):
    file = tmp_path / f"wine{suffix}"
    {
        ".csv": lambda: WINE.to_csv(file, index=False),
        ".tsv": lambda: WINE.to_csv(file, index=False, sep="\t"),
        ".parquet": lambda: WINE.to_parquet(file),
        ".jsonl": lambda: WINE.to_json(file, orient="records", lines=True),
        ".feather": lambda: WINE.to_feather(file),
    }[suffix]()
    found = look(file)
    assert found.data == {"class_path": "Table", "init_args": {"path": str(file), "target": "target"}}
    assert (found.name, found.classes, found.unlabelled) == ("wine", {"0": 59, "1": 71, "2": 48}, 0)
    assert (found.labelled, found.rarest) == (134, 36)


def test_columns_that_are_no_inputs_are_left_out_and_named(tmp_path):
    count = len(WINE)
    frame = WINE.assign(
        PassengerId=range(10, 10 + count),
        code=[f"c{i}" for i in range(count)],
        key=[f"k{i}" for i in range(count)],
        day=DAYS.strftime("%d.%m.%Y"),
        nothing=None,
        region=["north", "south"] * (count // 2),
    )
    frame.insert(0, "", range(count))
    found = of_csv(tmp_path, frame)
    assert arguments(found)["id"] == "PassengerId"
    assert sorted(arguments(found)["ignore"]) == ["", "code", "day", "key", "nothing"]
    left = [text for word, text in found.facts if word == "left out"]
    assert any(text.startswith("day: dates or times") for text in left)
    assert ("id", "column 'PassengerId' names the rows") in found.facts
    split = settings_split(found)
    assert set(form(split.labelled.inputs)["columns"]) == {*WINE.columns, "region"} - {"target"}


def settings_split(found):
    """The rows of seed 0, by the settings that were found."""
    from ensdistill.cli.settings import load_config

    return load_config([], found=settings_of(found, ("ensdistill.data",))[0]).split(0)


def test_a_number_that_is_different_in_each_row_stays_an_input(tmp_path):
    found = of_csv(tmp_path, WINE.assign(altitude=range(len(WINE))))
    assert arguments(found).keys() == {"path", "target"}


def test_an_id_that_repeats_is_an_input_with_a_note(tmp_path):
    found = of_csv(tmp_path, WINE.assign(patient_id=np.arange(len(WINE)) // 3))
    assert arguments(found).keys() == {"path", "target"}
    remedy = "'patient_id' repeats; if its rows belong together: --data.parts.group patient_id"
    assert ("note", remedy) in found.facts


@pytest.mark.parametrize("name", ["target", "Label", "CLASS", "y"])
def test_a_target_is_known_by_its_name(name, tmp_path):
    frame = WINE.rename(columns={"target": name}).assign(region=["north", "south"] * (len(WINE) // 2))
    assert arguments(of_csv(tmp_path, frame))["target"] == name


def test_the_only_column_of_classes_is_the_target(tmp_path):
    frame = WINE.drop(columns="target").assign(kind=WINE.target.map({0: "a", 1: "b", 2: "c"}))
    assert arguments(of_csv(tmp_path, frame))["target"] == "kind"


def test_several_columns_that_can_be_the_target_are_listed(tmp_path):
    frame = WINE.drop(columns="target").assign(
        kind=WINE.target.map(str), region=["n", "s"] * (len(WINE) // 2)
    )
    with pytest.raises(
        ValueError, match=r"--target: .*several .*: kind \(3 classes\), region \(2 classes\)$"
    ):
        of_csv(tmp_path, frame)
    with pytest.raises(ValueError, match=r"--target: rows.csv has no column 'knd'.*did you mean 'kind'"):
        of_csv(tmp_path, frame, target="knd")
    found = of_csv(tmp_path, frame, target="kind", ignore=["region"])
    assert arguments(found)["ignore"] == ["region"]


def test_rows_without_a_label_are_the_pool(tmp_path):
    frame = WINE.assign(target=np.where(np.arange(len(WINE)) % 2, "NA", WINE.target.map(lambda y: f"c{y}")))
    found = of_csv(tmp_path, frame)
    assert arguments(found)["unlabelled"] == ["NA"]
    assert (found.unlabelled, sum(found.classes.values())) == (89, 89)
    assert "NA stands for an unknown label there" in dict(found.facts)["target"]
    as_class = of_csv(tmp_path, frame, unlabelled=[])
    assert as_class.classes["NA"] == 89
    # Among numbers NA is a gap without a doubt.
    numbers = of_csv(tmp_path, WINE.assign(target=WINE.target.where(WINE.index % 2 == 0)))
    assert (numbers.unlabelled, "unlabelled" in arguments(numbers)) == (89, False)


def test_few_rows_of_a_class_mean_few_folds(tmp_path):
    frame = WINE.assign(target=np.where(WINE.index < 4, "rare", WINE.target.map(str)))
    settings, _ = settings_of(of_csv(tmp_path, frame))
    assert (settings["teachers"]["folds"], settings["distill"].get("folds", 3)) == (3, 3)
    assert "folds" not in settings_of(of_csv(tmp_path, WINE))[0]["teachers"]


def test_rows_made_from_coarse_columns_may_equal_test_rows(tmp_path):
    frame = pd.DataFrame({"a": list("xyz") * 20, "b": range(60), "y": ["p", "q"] * 30})
    assert of_csv(tmp_path, frame).settings == {"max_test_copies": 1.0}
    assert of_csv(tmp_path, frame.assign(c=np.linspace(0, 1, 60))).settings == {}


TEXTS = [
    f"the {word} plot of film {i} was {word} to the very end" for i in range(20) for word in ("good", "bad")
]


def test_a_column_of_prose_makes_a_data_set_of_texts(tmp_path):
    frame = pd.DataFrame(
        {"id": range(40), "review": TEXTS, "stars": [1, 2, 3, 4] * 10, "label": ["a", "b"] * 20}
    )
    found = of_csv(tmp_path, frame)
    assert found.data["class_path"] == "Texts"
    assert arguments(found) == {
        "path": str(tmp_path / "rows.csv"),
        "target": "label",
        "text": "review",
        "id": "id",
    }
    assert ("left out", "stars: not a part of the texts") in found.facts
    settings, _ = settings_of(found, ("ensdistill.models",))
    assert settings["distill"]["students"]["student"]["model"]["class_path"] == "BagOfNgrams"


def test_arrays(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "both.npz", X=x, y=y)
    found = look(tmp_path / "both.npz")
    assert arguments(found) == {
        "inputs": str(tmp_path / "both.npz"),
        "labels": str(tmp_path / "both.npz"),
        "inputs_name": "X",
        "labels_name": "y",
        "labelled": 45,
    }
    assert len(settings_split(found).test) == 15
    np.savez(tmp_path / "odd.npz", a=x, b=y, c=y)
    with pytest.raises(
        ValueError, match=r"labels: expected --target NAME, because odd.npz holds the arrays a, b, c"
    ):
        look(tmp_path / "odd.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", x)
    with pytest.raises(ValueError, match=r"--target: .*beside x.npy there is none called y, labels"):
        look(folder / "x.npy")
    np.save(folder / "labels.npy", y)
    assert arguments(look(folder))["labels"] == str(folder / "labels.npy")
    assert look(folder).name == "folder"


def test_a_table_of_paths_of_images(tmp_path):
    images(tmp_path / "files", 8)
    frame = pd.DataFrame({"file": [f"files/{i}.png" for i in range(8)], "size": 8, "label": ["a", "b"] * 4})
    found = of_csv(tmp_path, frame)
    assert found.data["class_path"] == "ImageFolder"
    assert arguments(found) == {"path": str(tmp_path / "rows.csv"), "target": "label", "file": "file"}
    assert len(settings_split(found).test) == 2


def images(folder, count=4):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / f"{i}.png")


def test_images_in_class_folders(tmp_path):
    for name in ("cat", "dog"):
        images(tmp_path / "photos" / name)
    found = look(tmp_path / "photos")
    assert found.data == {"class_path": "ImageFolder", "init_args": {"path": str(tmp_path / "photos")}}
    assert (found.classes, found.labelled) == ({"cat": 4, "dog": 4}, 6)
    settings, _ = settings_of(found, ("ensdistill.models",))
    assert settings["distill"]["students"]["student"]["model"]["class_path"] == "CNN"
    images(tmp_path / "alone" / "cat")
    with pytest.raises(ValueError, match=r"two or more classes in .*got one, 'cat'"):
        look(tmp_path / "alone")


def test_folders_of_parts(tmp_path):
    for part, count in (("train", 6), ("test", 3)):
        for name in ("ham", "spam"):
            (tmp_path / "mails" / part / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "mails" / part / name / f"{i}.txt").write_text(f"{name} {part} {i}")
    found = look(tmp_path / "mails")
    folder = tmp_path / "mails"
    assert arguments(found) == {"path": str(folder / "train"), "test_path": str(folder / "test")}
    assert (found.labelled, found.test) == (12, 6)
    assert len(settings_split(found).test) == 6


def test_tables_of_parts(tmp_path):
    WINE.iloc[::2].to_csv(tmp_path / "train.csv", index=False)
    WINE.iloc[1::2].to_csv(tmp_path / "test.csv", index=False)
    found = look(tmp_path)
    assert (found.labelled, found.test) == (89, 89)
    assert arguments(found)["test_path"] == str(tmp_path / "test.csv")
    # As competitions have them: the test rows have no labels, so they can only be a pool.
    WINE.iloc[1::2].drop(columns="target").to_csv(tmp_path / "test.csv", index=False)
    found = look(tmp_path)
    assert (found.unlabelled, found.test) == (89, None)
    assert arguments(found)["pool_path"] == str(tmp_path / "test.csv")


def test_models_with_their_data(tmp_path):
    models, data = tmp_path / "models", tmp_path / "wine.csv"
    models.mkdir()
    WINE.to_csv(data, index=False)
    joblib.dump(1, models / "old.joblib")
    with pytest.raises(
        ValueError, match=r"no model that is read as it is; old.joblib: reading pickles can run code"
    ):
        look(models, data=data)
    (models / "net.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"old.joblib: .*; net.safetensors: name the module's class"):
        look(models, data=data)
    model = GaussianNB().fit(WINE.drop(columns="target"), WINE.target)
    skops.io.dump(model, models / "line.skops")
    (models / "notes.txt").write_text("to be read by people\n")
    (models / "trees.txt").write_text("tree\nversion=v4\n")
    with pytest.raises(ValueError, match=r"--data: expected the data that the models of .* are for"):
        look(models)
    found = look(models, data=data)
    settings, _ = settings_of(found)
    assert settings["name"] == "models"
    assert settings["data"]["init_args"]["path"] == str(data)
    assert settings["teachers"]["members"] == [
        {"class_path": "MemberFile", "init_args": {"file": str(models / name)}}
        for name in ("line.skops", "trees.txt")
    ]
    with pytest.raises(ValueError, match="--data: expected with a folder of models"):
        look(data, data=data)


def test_a_folder_of_models_that_have_to_be_built_first_has_the_remedy(tmp_path, monkeypatch):
    WINE.to_csv(tmp_path / "wine.csv", index=False)
    folder = tmp_path / "models"
    folder.mkdir()
    for stated, files in (
        (r"holds none$", ["notes.md"]),
        (r"weights alone \(net\.safetensors\): name their module's class.*MemberFile", ["net.safetensors"]),
        (r"Hugging Face \(bert\).*Ensemble\.from_members.*\.save", ["bert/config.json"]),
    ):
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=stated):
            look(folder, data=tmp_path / "wine.csv")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "member.json").write_text("{}")
    monkeypatch.chdir(saved)
    found = look(Path(), data=tmp_path / "wine.csv")
    assert ("members", "saved (saved members)") in found.facts


HALF = ["a", "b"] * (len(WINE) // 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": 1},
            r"target: expected two classes or more; column 'target' holds '1' alone: choose another",
        ),
        (
            {"target": np.arange(len(WINE)) * 7},
            "what looks like a regression's target, 178 different numbers",
        ),
        ({"target": None}, "target: column 'target': expected labels; got 178 rows, all without one"),
        (
            {"target": DAYS.strftime("%Y-%m-%d")},
            "column 'target' holds dates or times, .*: choose another column",
        ),
        (
            {"target": [*("a" * 170), *("b" * 6), "c", "c"]},
            r"at least 3 rows of each class.* got 1: c \(2\): leave these",
        ),
        (
            {"target": ["None", "a"] * (len(WINE) // 2)},
            r"--data\.unlabelled '\[None\]' on the command line, or unlabelled: \[None\] in YAML",
        ),
    ],
)
def test_a_target_that_is_no_classes_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        of_csv(tmp_path, WINE.assign(**change), target="target")


def test_data_without_an_input_are_refused(tmp_path):
    frame = pd.DataFrame({"day": DAYS.strftime("%Y-%m-%d"), "target": HALF})
    with pytest.raises(
        ValueError, match=r"no column to learn from .*: 'day' holds dates or times.*Make numbers of one"
    ):
        of_csv(tmp_path, frame)
    frame = pd.DataFrame({"tags": [[1, 2]] * 6, "target": ["a", "b"] * 3})
    for file, write in (
        ("rows.jsonl", lambda f: frame.to_json(f, orient="records", lines=True)),
        ("rows.parquet", frame.to_parquet),
    ):
        write(tmp_path / file)
        with pytest.raises(ValueError, match="'tags' holds lists, structures or values of several types"):
            look(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty; expected a header and rows"),
        ("header.csv", b"a,b,y\n", "has columns .* but no rows"),
        ("broken.csv", b'a,b,y\n1,2,x\n"3,4,y\n', "is not CSV that can be read .*: mend it, or write it anew"),
        ("latin.csv", "a,y\nJosé,b\n".encode("latin1"), "save it as UTF-8"),
        ("half.parquet", b"PAR1xxxx", "is not Parquet that can be read"),
        ("half.npz", b"PK\3\4xxxx", "inputs: .*half.npz"),
        ("book.xlsx", b"PK", "expected a table .*; got book.xlsx: write it as one of these, for example as CSV"),
        ("folder/a.pdf", b"", r"DATA: expected a table .*; .*folder holds 1 .pdf"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_refused(name, content, message, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        look(file if file.parent == tmp_path else file.parent)
    with pytest.raises(ValueError, match="there is no file or folder"):
        look(tmp_path / "nowhere.csv")


def test_targets_and_inputs_of_very_many_categories_get_other_advice(tmp_path):
    rows = 300
    names = [f"n{i % 200}" for i in range(rows)]
    table = pd.DataFrame({"name": names, "size": np.arange(rows) % 7, "y": ["a", "b"] * (rows // 2)})
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        ValueError, match="got 200 different values in 300 rows, as names and ids have, 200 of them"
    ):
        look(tmp_path / "t.csv", "name")
    notes = [text for word, text in look(tmp_path / "t.csv", "y").facts if word == "note"]
    assert notes == [
        "'name' has 200 different texts, 1.5 rows each; the rare ones become one category. --ignore name leaves it out"
    ]
    table.assign(number=np.arange(rows) / 3).to_csv(tmp_path / "t.csv", index=False)
    assert look(tmp_path / "t.csv", "number").labels.task == "regression"
    with pytest.raises(ValueError, match=r"300 different numbers.*--task regression"):
        look(tmp_path / "t.csv", "number", task="classification")


def test_a_large_parquet_file_is_looked_at_column_by_column(tmp_path, monkeypatch):
    from ensdistill.data.table_files import TableFile
    from ensdistill.job.starting import tables

    rows = 90
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": np.arange(rows),
            "a.b": generator.normal(size=rows),
            "when": pd.date_range("2024-01-01", periods=rows),
            "list": [[1, 2]] * rows,
            "city": generator.choice(["Rome", None, "Oslo"], rows),
            "own": generator.random(rows) > 0.5,
            "y": ["a", "b", None] * (rows // 3),
        }
    )
    table.to_parquet(tmp_path / "t.parquet", index=False, row_group_size=20)
    whole = look(tmp_path / "t.parquet", "y")
    read, most = TableFile.read, []

    def watched(file, columns=None, **more):
        found = read(file, columns, **more)
        most.append(found.shape[1])
        return found

    monkeypatch.setattr(TableFile, "read", watched)
    monkeypatch.setattr(tables, "HELD", 1)
    parts = look(tmp_path / "t.parquet", "y")
    assert max(most) == 1
    assert (parts.facts, parts.data, parts.classes) == (whole.facts, whole.data, whole.classes)
    assert settings_of(parts) == settings_of(whole)
