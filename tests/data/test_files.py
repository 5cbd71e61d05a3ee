"""Tables, arrays and images from files, and the errors of those that can't be read."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ensdistill.data.files import ImageFiles, read_array
from ensdistill.data.samples import as_samples, sample_hashes
from ensdistill.data.table_files import read_table

FRAME = pd.DataFrame({"age": [31, 7, 50], "income": [0.5, np.nan, -2.0], "city": ["Rom", None, "Os,lo"]})


def written(folder):
    pytest.importorskip("pyarrow")
    FRAME.to_csv(folder / "t.csv", index=False)
    FRAME.to_csv(folder / "t.tsv", index=False, sep="\t")
    FRAME.to_parquet(folder / "t.parquet")
    FRAME.to_json(folder / "t.jsonl", orient="records", lines=True)
    FRAME.to_feather(folder / "t.feather")


def test_a_table_is_the_same_from_every_format(tmp_path):
    written(tmp_path)
    expected = sample_hashes(as_samples(FRAME))
    for path in sorted(tmp_path.iterdir()):
        frame = read_table(path)
        assert list(frame.columns) == list(FRAME.columns), path
        np.testing.assert_array_equal(sample_hashes(as_samples(frame)), expected, err_msg=path.name)


def test_columns_are_chosen_by_name(tmp_path):
    written(tmp_path)
    assert list(read_table(tmp_path / "t.csv", ["city", "age"]).columns) == ["city", "age"]
    with pytest.raises(
        ValueError, match=r"columns: t.csv has no column 'ages', but age, income, city; did you mean 'age'\?"
    ):
        read_table(tmp_path / "t.csv", ["ages"])


def test_none_is_a_category_among_texts_and_a_gap_among_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("x,pain\n1,None\nNone,much\n3,NA\n")
    frame = read_table(tmp_path / "t.csv")
    assert frame.pain.tolist()[:2] == ["None", "much"]
    assert frame.isna().to_numpy().tolist() == [[False, False], [True, False], [False, True]]
    assert frame.x.dtype == float


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"x,y\n", "no rows"),
        ("a.csv", b"x,y,x\n1,2,3\n", "different names; 'x' stands 2 times"),
        ("a.csv", b"x,y\n1,2\n3,4,5\n", "line 3"),
        ("a.csv", b"x,y\n1,2,3\n4,5,6\n", "expected 2 fields in each row, as in the first; line 2 has more"),
        ("a.csv", b"x,y\n1,\xff\n", "utf-8"),
        ("a.parquet", b"PAR1 but no more", "not Parquet"),
        ("a.jsonl", b'{"x": 1}\n{"x": ', "not JSON lines"),
        ("a.xlsx", b"PK", "expected a table"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)^path: .*{words}"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("t.csv", "a;b;y", r"fields between commas; .* holds semicolons, 'a;b;y': .*sep=';', decimal=','"),
        ("t.csv", "a\tb\ty", r"fields between commas; .* holds tabs, .*: name it \.tsv"),
        ("t.tsv", "a,b,y", r"fields between tabs; .* holds commas"),
    ],
)
def test_another_separator_is_named(tmp_path, name, header, words):
    (tmp_path / name).write_text(f"{header}\n{header.replace('a', '1')}\n")
    with pytest.raises(ValueError, match=rf"^path: .*{name}: expected {words}"):
        read_table(tmp_path / name)
    (tmp_path / "one.csv").write_text("text\na;b\n")
    assert read_table(tmp_path / "one.csv")["text"].tolist() == ["a;b"]


def test_a_missing_file_is_named(tmp_path):
    for read in (read_table, read_array):
        with pytest.raises(ValueError, match=r"there is no file '.*nothing.csv'"):
            read(tmp_path / "nothing.csv")


def test_arrays_from_every_format(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", x=pixels, y=pixels[0])
    save_file({"x": pixels}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), pixels)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "x"), pixels)
    np.testing.assert_array_equal(read_array(tmp_path / "a.safetensors"), pixels)
    with pytest.raises(ValueError, match=r"name: expected one of the arrays of a.npz, x, y; got None"):
        read_array(tmp_path / "a.npz")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^path: .*objects.npy .*Python objects"):
        read_array(tmp_path / "objects.npy")
    for name in ("a.npy", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(ValueError, match=f"^path: .*{name} can't be read"):
            read_array(tmp_path / name)


def test_images_in_class_folders(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    files = ImageFiles.from_folder(tmp_path)
    assert [(path.name, label) for path, label in zip(files.paths, files.labels, strict=True)] == [
        ("0.png", "a"), ("2.png", "a"), ("1.png", "b"), ("3.png", "b")
    ]  # fmt: skip
    np.testing.assert_array_equal(as_samples(files)[np.array([3, 0])], pixels[[3, 0]])
    grey = ImageFiles.from_folder(tmp_path, mode="L")
    assert grey[0][0].shape == (6, 5)

    (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "2.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a/2.png: not an image that can be read"):
        files[1]
    Image.fromarray(pixels[0]).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"every image in the folder of its class; loose.png lies beside"):
        ImageFiles.from_folder(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        ImageFiles.from_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        ImageFiles.from_folder(tmp_path / "nowhere")
