"""``ensdistill predict``: one row for each row of the input, from every format to every other."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.feather
import pytest
from PIL import Image
from serving_helpers import frame, of_array, of_images, of_table, of_texts

from ensdistill.cli.predict import main

OWN = ["label", "p_no", "p_yes", "entropy"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    data = {"class": "Table", "roles": {"target": "sold"}, "ignored": ["note"]}
    of_table(about={"data": data}).save(folder / "table")
    of_array().save(folder / "array")
    of_images(about={"data": {"mode": "L", "file": "file"}}).save(folder / "images")
    of_texts(about={"data": {"text": "body"}}).save(folder / "texts")
    return folder


def write(table, path):
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        table.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    return path


def read(path):
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        return pd.read_csv(path, sep="," if suffix == ".csv" else "\t", keep_default_na=False, na_values=[""])
    if suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype=False, precise_float=True)
    return pd.read_parquet(path) if suffix == ".parquet" else pyarrow.feather.read_feather(path)


def predict(*words):
    assert main([str(word) for word in words]) == 0


def refused(*words, match):
    with pytest.raises(ValueError, match=match):
        main([str(word) for word in words])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (".csv", ".tsv"),
        (".tsv", ".jsonl"),
        (".jsonl", ".parquet"),
        (".parquet", ".arrow"),
        (".arrow", ".csv"),
    ],
)
def test_every_format_becomes_every_other(students, tmp_path, source, target):
    table = frame(50, seed=1)
    new = write(table, tmp_path / f"new{source}")
    predict(students / "table", new, "-o", tmp_path / f"out{target}", "--batch", 7)
    out, student = read(tmp_path / f"out{target}"), of_table()
    assert list(out) == OWN
    np.testing.assert_allclose(out[["p_no", "p_yes"]], student.predict_proba(table), rtol=1e-5)
    np.testing.assert_allclose(out.entropy, student.entropy(table), rtol=1e-4)
    assert out.label.tolist() == student.predict(table).tolist()


def test_answers_do_not_depend_on_the_pieces(students, tmp_path):
    new = write(frame(50, seed=2), tmp_path / "new.csv")
    for rows in (1, 3, 1000):
        predict(students / "table", new, "-o", tmp_path / f"{rows}.csv", "--batch", rows)
    texts = [(tmp_path / f"{rows}.csv").read_text() for rows in (1, 3, 1000)]
    numbers = [pd.read_csv(io.StringIO(text)) for text in texts]
    for one in numbers[1:]:
        pd.testing.assert_frame_equal(one, numbers[0], rtol=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_are_carried(students, tmp_path, suffix):
    table = frame(30, seed=3).assign(code=[f"{i:03d}" for i in range(30)])
    new = write(table, tmp_path / f"new{suffix}")
    predict(students / "table", new, "-o", tmp_path / "id.parquet", "--id", "code", "--batch", 8)
    out = read(tmp_path / "id.parquet")
    assert list(out) == ["code", *OWN]
    assert out.code.tolist() == table.code.tolist()  # 007 stays 007
    predict(students / "table", new, "-o", tmp_path / "all.csv", "--keep", "--batch", 8)
    kept = read(tmp_path / "all.csv")
    assert list(kept) == [*table, *OWN]
    np.testing.assert_array_equal(kept.age, table.age)
    assert kept.city.fillna("").tolist() == table.city.fillna("").tolist()
    np.testing.assert_allclose(kept.p_yes, out.p_yes, rtol=1e-5)


def test_texts_with_separators_and_quotes_are_carried(students, tmp_path):
    code = ["a,b", 'say "x"', "two\nlines", "plain", ""]
    new = write(frame(5).assign(code=code), tmp_path / "new.csv")
    predict(students / "table", new, "-o", tmp_path / "out.csv", "--id", "code", "--batch", 2)
    assert read(tmp_path / "out.csv").code.fillna("").tolist() == code


def test_the_trainings_own_files_have_columns_that_are_not_used(students, tmp_path, capsys):
    new = write(frame().assign(sold=1, note="x"), tmp_path / "new.csv")
    predict(students / "table", new, "-o", tmp_path / "out.csv")
    carry = "not used: sold, note (no inputs of the student; --id COLUMN carries one into the answers)"
    assert carry in capsys.readouterr().err
    predict(students / "table", new, "-o", tmp_path / "out.csv", "--id", "note")
    assert "not used: sold (no inputs of the student)" in capsys.readouterr().err


def test_gaps_and_texts_that_look_like_numbers_are_read_as_in_training(students, tmp_path):
    """In the training's table a number may be NA or None, and a city may be 12 or None."""
    (tmp_path / "new.csv").write_text(
        "age,rooms,city,own\nNA,3,12,True\nNone,4,None,FALSE\n41.5,,NA,\n,1,Rom,true\n"
    )
    table = pd.DataFrame(
        {"age": [None, None, 41.5, None], "rooms": [3, 4, None, 1], "city": ["12", "None", None, "Rom"]}
    ).assign(own=pd.Series([True, False, None, True], dtype=object))
    predict(students / "table", tmp_path / "new.csv", "-o", tmp_path / "out.csv")
    np.testing.assert_allclose(
        read(tmp_path / "out.csv").p_yes, of_table().predict_proba(table)[:, 1], rtol=1e-5
    )


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "arrow"])
def test_standard_input_and_output_are_streams(students, tmp_path, monkeypatch, form):
    new = write(frame(20, seed=5), tmp_path / f"new.{form}")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(new.read_bytes())))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    predict(students / "table", "-", "--format", form, "--batch", 6)
    monkeypatch.undo()
    (tmp_path / f"out.{form}").write_bytes(out.getvalue())
    np.testing.assert_allclose(
        read(tmp_path / f"out.{form}")[["p_no", "p_yes"]],
        of_table().predict_proba(frame(20, seed=5)),
        rtol=1e-5,
    )


def test_ones_and_zeros_stand_for_booleans_in_text_tables(students, tmp_path):
    table = frame(20, seed=4)
    new = write(table.assign(own=table.own.astype(int)), tmp_path / "new.csv")
    predict(students / "table", new, "-o", tmp_path / "out.csv")
    np.testing.assert_allclose(
        read(tmp_path / "out.csv").p_yes, of_table().predict_proba(table)[:, 1], rtol=1e-5
    )
    write(table.assign(own=2), new)
    refused(students / "table", new, match=r"column 'own': expected True or False \(or 1 or 0\); got '2'")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_booleans_are_written_as_the_training_had_them(tmp_path, suffix):
    of_table((False, True)).save(tmp_path / "student")
    table = frame(30, seed=2)
    table["kept"] = table.own.astype(object).where(table.index % 3 > 0, None)
    new = write(table, tmp_path / "new.parquet")
    predict(tmp_path / "student", new, "-o", tmp_path / f"out{suffix}", "--id", "kept", "--ignore", "kept")
    lines = [
        line.split(",\t"[suffix == ".tsv"]) for line in (tmp_path / f"out{suffix}").read_text().splitlines()
    ]
    assert [line[0] for line in lines[1:]] == ["" if v is None else str(v) for v in table.kept]
    assert {line[1] for line in lines[1:]} <= {"False", "True"}
    assert lines[0][1:4] == ["label", "p_False", "p_True"]


def test_a_stream_of_csv_is_predicted_as_it_comes(students, monkeypatch):
    """The first answers are written before the input has ended."""
    data = io.BytesIO(frame(30_000, seed=6).to_csv(index=False).encode())
    out, seen = io.BytesIO(), []

    class Slow(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            seen.append(len(out.getvalue()))
            return data.readinto(buffer)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(Slow())))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    predict(students / "table", "-", "--batch", 5000)
    monkeypatch.undo()
    assert any(0 < size < len(out.getvalue()) for size in seen)
    assert len(out.getvalue().splitlines()) == 30_001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="age"),
            "'age' is missing: the student's columns are age, rooms, city, own",
        ),
        (
            lambda t: t.rename(columns={"city": "City"}),
            r"'city' is missing \(nearest: 'City'\); 'City' is not expected",
        ),
        (
            lambda t: t.assign(extra=1),
            r"'extra' is not expected.*--ignore extra leaves a column out, --keep carries all",
        ),
        (
            lambda t: t.assign(rooms="many"),
            "column 'rooms': expected a number(; got 'many'. --on-error skip| in each row; its type is text)",
        ),
        (
            lambda t: t.assign(own="perhaps"),
            "column 'own': expected True or False( .or 1 or 0.; got 'perhaps'| in each row; its type is text)",
        ),
        (
            lambda t: t.assign(age=t.age.mask(t.index == 33, np.inf)),
            "row 33: column 'age': expected a number; got inf",
        ),
        (lambda t: t.iloc[:0], r"new\.(csv|parquet) has columns .* but no rows"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_unlike_tables_are_refused_and_nothing_is_written(students, tmp_path, change, message, suffix):
    new = write(change(frame(40)), tmp_path / f"new{suffix}")
    refused(students / "table", new, "-o", tmp_path / "out.csv", "--batch", "16", match=message)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_that_cannot_be_read_are_left_out_and_counted(students, tmp_path, capsys, suffix):
    table = frame(40, seed=7)
    ages = table.age.astype(object).where(table.age.notna(), None)
    ages[11] = ages[30] = "old"
    if suffix == ".parquet":  # which has one type for each column, so the value at fault is an infinity
        ages = table.age.mask(table.index.isin([11, 30]), np.inf)
    new = write(table.assign(age=ages, code=[f"c{i}" for i in range(40)]), tmp_path / f"new{suffix}")
    words = [students / "table", new, "-o", tmp_path / "out.csv", "--batch", 8, "--id", "code"]
    refused(*words, match="row 11: column 'age': expected a number; got ('old'|inf)")
    predict(*words, "--on-error", "skip")
    said = capsys.readouterr().err
    assert "38 rows in" in said
    assert "2 rows were left out:\n  row 11: column 'age'" in said
    assert "\n  row 30: column 'age'" in said
    out = read(tmp_path / "out.csv")
    assert out.code.tolist() == [f"c{i}" for i in range(40) if i not in (11, 30)]
    expected = of_table().predict_proba(table.drop(index=[11, 30]))
    np.testing.assert_allclose(out[["p_no", "p_yes"]], expected, rtol=1e-5)


def test_rows_of_too_many_fields_keep_the_number_of_the_others(students, tmp_path, capsys):
    lines = frame(20, seed=8).assign(code=range(20)).to_csv(index=False).splitlines()
    for row in (3, 9):
        lines[1 + row] += ",more,fields"
    lines[1 + 12] = lines[1 + 12].replace(lines[1 + 12].split(",")[1], "many", 1)
    (tmp_path / "new.csv").write_text("\n".join(lines))
    words = [students / "table", tmp_path / "new.csv", "-o", tmp_path / "out.csv", "--id", "code"]
    refused(*words, match="row 3: expected 5 fields; got 7")
    predict(*words, "--on-error", "skip", "--batch", "4")
    said = capsys.readouterr().err
    assert "3 rows were left out" in said
    assert sorted(map(int, re.findall(r"\n  row (\d+)", said))) == [3, 9, 12]
    assert "row 12: column 'rooms'" in said or "row 12: column 'age'" in said
    assert read(tmp_path / "out.csv").code.tolist() == [i for i in range(20) if i not in (3, 9, 12)]


def test_a_line_that_is_no_json_is_named(students, tmp_path, capsys):
    lines = frame(10).to_json(orient="records", lines=True).splitlines()
    lines[4], lines[6] = "{broken", "[1, 2]"
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    words = [students / "table", tmp_path / "new.jsonl", "-o", tmp_path / "out.csv"]
    refused(*words, match="row 4: not JSON")
    predict(*words, "--on-error", "skip", "--batch", "3")
    said = capsys.readouterr().err
    assert "row 4: not JSON" in said
    assert "row 6: expected an object" in said
    assert len(read(tmp_path / "out.csv")) == 8


@pytest.mark.parametrize(
    ("name", "content"), [("new.csv", ""), ("new.jsonl", ""), ("new.csv", "age,rooms,city,own\n")]
)
def test_empty_files_are_refused(students, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    refused(
        students / "table",
        tmp_path / name,
        "-o",
        tmp_path / "out.csv",
        match=f"{name} (is empty|has columns .* but no rows)",
    )
    assert not (tmp_path / "out.csv").exists()


def test_a_file_where_no_row_can_be_read_is_refused(students, tmp_path):
    new = write(frame(5).assign(age="x"), tmp_path / "new.csv")
    refused(
        students / "table",
        new,
        "-o",
        tmp_path / "out.csv",
        "--on-error",
        "skip",
        match="none of 5 rows can be predicted; the first: row 0: column 'age'",
    )


def test_arrays_are_predicted_from_their_files(students, tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "new.npy", x)
    predict(students / "array", tmp_path / "new.npy", "-o", tmp_path / "out.parquet", "--batch", 7)
    out = read(tmp_path / "out.parquet")
    np.testing.assert_allclose(out[["p_a", "p_b", "p_c"]], of_array().predict_proba(x), rtol=1e-5)
    x[17, 1] = np.nan
    np.save(tmp_path / "new.npy", x)
    refused(students / "array", tmp_path / "new.npy", match="row 17: expected finite numbers; got nan at 1")
    predict(students / "array", tmp_path / "new.npy", "-o", tmp_path / "out.csv", "--on-error", "skip")
    assert len(read(tmp_path / "out.csv")) == 49
    np.save(tmp_path / "new.npy", x[:, :2])
    refused(students / "array", tmp_path / "new.npy", match=r"expected an array \[N, 3\]; got \[50, 2\]")
    refused(students / "array", write(frame(), tmp_path / "t.csv"), match=r"expected an array.*; got t\.csv")


def test_images_are_predicted_from_a_folder_and_from_a_table(students, tmp_path, capsys):
    (tmp_path / "in" / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    names = ["a.png", "b.png", "more/c.png", "more/d.png"]
    for name, one in zip(names, pixels, strict=True):
        Image.fromarray(one).save(tmp_path / "in" / name)
    expected = of_images().predict_proba(pixels)
    predict(students / "images", tmp_path / "in", "-o", tmp_path / "out.csv", "--batch", 3)
    out = read(tmp_path / "out.csv")
    assert out.path.tolist() == names
    np.testing.assert_allclose(out[["p_a", "p_b"]], expected, rtol=1e-5)
    pd.DataFrame({"file": names, "when": "now"}).to_csv(tmp_path / "in" / "list.csv", index=False)
    predict(students / "images", tmp_path / "in" / "list.csv", "-o", tmp_path / "out.csv", "--keep")
    out = read(tmp_path / "out.csv")
    assert out.file.tolist() == names
    np.testing.assert_allclose(out[["p_a", "p_b"]], expected, rtol=1e-5)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    refused(students / "images", tmp_path / "in", match=r"row 1: .*b\.png: not an image")
    predict(students / "images", tmp_path / "in", "-o", tmp_path / "out.csv", "--on-error", "skip")
    assert read(tmp_path / "out.csv").path.tolist() == [names[0], *names[2:]]
    (tmp_path / "none").mkdir()
    refused(students / "images", tmp_path / "none", match="holds no image")


def test_texts_are_predicted_from_a_table_and_from_files(students, tmp_path):
    texts = ["a red fox", "one, more", "hens"]
    pd.DataFrame({"body": texts, "other": 1}).to_csv(tmp_path / "new.csv", index=False)
    predict(students / "texts", tmp_path / "new.csv", "-o", tmp_path / "out.jsonl", "--batch", 2)
    out = read(tmp_path / "out.jsonl")
    assert out.label.tolist() == of_texts().predict(texts).tolist()
    np.testing.assert_allclose(out[["p_1", "p_2"]], of_texts().predict_proba(texts), rtol=1e-5)
    (tmp_path / "in").mkdir()
    for place, text in enumerate(texts):
        (tmp_path / "in" / f"{place}.txt").write_text(text)
    predict(students / "texts", tmp_path / "in", "-o", tmp_path / "files.csv")
    np.testing.assert_allclose(read(tmp_path / "files.csv").p_1, out.p_1, rtol=1e-5)
    pd.DataFrame({"body": ["a", None, "b"]}).to_csv(tmp_path / "gap.csv", index=False)
    refused(
        students / "texts", tmp_path / "gap.csv", match="row 1: column 'body': expected a text; it is empty"
    )
    refused(students / "texts", write(frame(), tmp_path / "t.csv"), match="'body' is missing")


def test_wrong_options_are_refused(students, tmp_path, capsys):
    new = write(frame(), tmp_path / "new.csv")
    refused(
        students / "table",
        new,
        "--id",
        "rom",
        match="--id: there is no column 'rom' among .*; did you mean 'rooms'",
    )
    refused(students / "table", new, "--ignore", "rooms", match="--ignore: 'rooms' is an input")
    refused(students / "table", tmp_path / "no.csv", match="there is no file or folder")
    refused(students / "table", tmp_path, match=r"expected a table \(\.csv")
    clash = write(frame().assign(label=1), tmp_path / "label.csv")
    refused(
        students / "table", clash, "--keep", match="the input has a column 'label', and so has the output"
    )
    assert main([str(students / "table"), str(new), "-o", str(new)]) == 2
    assert "--output: expected another file than NEW" in capsys.readouterr().err
    assert main([str(students / "table"), str(new), "-o", "out.txt"]) == 2
    assert "--output: expected a table" in capsys.readouterr().err
    assert main([str(students / "table"), str(new), "--batch", "0"]) == 2
    assert main([str(students / "table"), str(new), "--keep", "--id", "age"]) == 2


def test_a_finished_run_predicts_what_its_student_does(finished_job, tmp_path):
    from ensdistill import load_student
    from ensdistill.data.datasets import Digits

    x = Digits(labelled=100, pool=100).split(0).test.inputs[:50]
    np.save(tmp_path / "new.npy", x)
    predict(finished_job, tmp_path / "new.npy", "-o", tmp_path / "out.parquet", "--student", "wide")
    out, student = read(tmp_path / "out.parquet"), load_student(finished_job, student="wide")
    assert out.label.tolist() == student.predict(x).tolist()
    np.testing.assert_array_equal(out[[f"p_{name}" for name in student.classes]], student.predict_proba(x))
    np.testing.assert_array_equal(out.entropy, student.entropy(x))
    assert json.loads((finished_job / "report.json").read_text())["students"].keys() == {"small", "wide"}


def test_a_missing_report_and_a_missing_folder_are_named(finished_job, tmp_path, capsys):
    from ensdistill.cli.main import main as command

    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_job, folder)
    (folder / "stage.json").unlink()
    new = tmp_path / "new.npy"
    np.save(new, np.zeros((2, 1, 8, 8), np.float32))
    predict(folder, new, "-o", tmp_path / "out.csv")
    assert "has no report of its present students" in capsys.readouterr().err
    predict(finished_job, new, "-o", tmp_path / "out.csv")
    assert "no report" not in capsys.readouterr().err
    assert command(["runs/nothing"]) == 2
    assert "RUN: there is no folder 'runs/nothing'" in capsys.readouterr().err
