"""Image files as data sets: class folders and tables of paths, in memory or decoded when needed."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ensdistill.data import ImageFolder, Partition
from ensdistill.data.copies import count_copies
from ensdistill.data.files import ImageFiles
from ensdistill.data.samples import Held, Lazy, fingerprint_of, joined, sample_hashes, whole

ROWS = 24


def pixels(seed=0, rows=ROWS):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 255, (6, 5 + i % 2, 3)).astype(np.uint8) for i in range(rows)]


def folders(root, images=None, suffix="png"):
    """Images 0, 1, ... in the folders ``cat`` and ``dog``; their paths."""
    paths = []
    for i, image in enumerate(images if images is not None else pixels()):
        path = root / ["cat", "dog"][i % 2] / f"{i:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def number(path):
    return int(path.stem)


@pytest.mark.parametrize("lazy", [None, True])
def test_class_folders_are_a_data_set(tmp_path, lazy):
    folders(tmp_path)
    split = ImageFolder(str(tmp_path), parts=Partition(test=8), lazy=lazy).split(0)
    assert isinstance(split.test.inputs, Lazy if lazy else Held)
    assert split.classes == split.labels == ("cat", "dog")
    assert (len(split.labelled), len(split.pool), len(split.test)) == (16, 0, 8)
    known = {image.tobytes(): i % 2 for i, image in enumerate(pixels())}
    for part in (split.labelled, split.test):
        images = whole(part.inputs, batch_size=3)
        assert [known[image.tobytes()] for image in images] == part.labels.tolist()
    grey = ImageFolder(tmp_path, mode="L", lazy=lazy).split(0)
    assert grey.test.inputs[:1][0].shape in ((6, 5), (6, 6))


def test_images_that_are_decoded_when_needed_make_the_same_split(tmp_path):
    paths = folders(tmp_path)
    paths[3].write_bytes(paths[1].read_bytes())  # two equal dogs
    held, lazy = (
        ImageFolder(tmp_path, lazy=lazy, parts=Partition(pool=6)).split(1) for lazy in (False, True)
    )
    for part in ("labelled", "pool", "test"):
        np.testing.assert_array_equal(getattr(held, part).uids, getattr(lazy, part).uids)
        np.testing.assert_array_equal(
            sample_hashes(getattr(held, part).inputs), sample_hashes(getattr(lazy, part).inputs)
        )
    assert not count_copies(lazy).test.any()
    # A changed file changes the fingerprint, whichever files that looks at.
    before = fingerprint_of(lazy.labelled.inputs)
    for path, image in zip(paths, pixels(1), strict=True):
        Image.fromarray(image).save(path)
    after = fingerprint_of(ImageFolder(tmp_path, lazy=True, parts=Partition(pool=6)).split(1).labelled.inputs)
    assert before["keys"] != after["keys"]


def test_large_images_are_not_held(tmp_path, monkeypatch):
    folders(tmp_path)
    monkeypatch.setattr("ensdistill.data.sources.images.HELD_BYTES", 6 * 5.5 * ROWS * 3 - 1)
    data = ImageFolder(tmp_path)
    assert isinstance(data.split(0).test.inputs, Lazy)
    assert isinstance(ImageFolder(tmp_path, mode="L").split(0).test.inputs, Held)
    assert len(pickle.dumps(data)) < 2000


def test_a_table_lists_images(tmp_path):
    paths = folders(tmp_path / "deep" / "files")
    table = pd.DataFrame({
        "file": [str(path.relative_to(tmp_path)) for path in paths],
        "animal": [["cat", "dog", None][i % 3] for i in range(ROWS)],
        "owner": [f"o{i // 2}" for i in range(ROWS)],
        "weight": np.arange(ROWS),
    })  # fmt: skip
    table.to_csv(tmp_path / "list.csv", index=False)
    data = ImageFolder(
        tmp_path / "list.csv",
        file="file",
        target="animal",
        weight="weight",
        parts=Partition(group="owner", test=0.4),
    )
    split = data.split(0)
    assert (len(split.pool) + split.left_out, len(split.labelled) + len(split.test)) == (8, 16)
    assert not np.intersect1d(split.labelled.groups, split.test.groups).size
    order = split.test.weights.astype(int)
    images = [image.tobytes() for image in split.test.inputs[:]]
    assert images == [pixels()[i].tobytes() for i in order]
    table.loc[5, "file"] = "deep/nothing.png"
    table.to_csv(tmp_path / "list.csv", index=False)
    with pytest.raises(
        ValueError, match=r"^path: row 5 of .*list\.csv names .*nothing\.png, which is no file$"
    ):
        ImageFolder(tmp_path / "list.csv", file="file", target="animal").split(0)
    with pytest.raises(ValueError, match=r"^file: list\.csv has no column 'path'"):
        ImageFolder(tmp_path / "list.csv").split(0)


def test_given_folders_are_the_parts(tmp_path):
    folders(tmp_path / "a")
    folders(tmp_path / "b", pixels(1))
    pool = tmp_path / "c"
    pool.mkdir()
    Image.fromarray(pixels(2)[0]).save(pool / "x.png")
    split = ImageFolder(tmp_path / "a", test_path=tmp_path / "b", pool_path=pool).split(0)
    assert (len(split.labelled), len(split.pool), len(split.test)) == (ROWS, 1, ROWS)
    np.testing.assert_array_equal(split.pool.inputs[:][0], pixels(2)[0])


@pytest.mark.parametrize("damage", ["cut", "middle", "text", "deep"])
@pytest.mark.parametrize("lazy", [False, True])
def test_an_unreadable_image_is_named_or_counted(tmp_path, damage, lazy):
    paths = folders(tmp_path)
    content = bytearray(paths[7].read_bytes())
    if damage == "cut":
        paths[7].write_bytes(content[:-30])
    elif damage == "middle":
        content[45:60] = bytes(15)
        paths[7].write_bytes(content)
    elif damage == "text":
        paths[7].write_text("no image")
    else:
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(paths[7])
    data = ImageFolder(tmp_path, lazy=lazy)
    if damage == "middle" and lazy:  # found when it is decoded
        both = joined([data.split(0).labelled.inputs, data.split(0).test.inputs])
        with pytest.raises(ValueError, match=r"07\.png: not an image that can be read"):
            whole(both)
    else:
        fault = "expected pixels of 8 bits" if damage == "deep" else "not an image that can be read"
        with pytest.raises(ValueError, match=rf"dog/07\.png: {fault}.*; 1 such files of 24: mend them, or"):
            data.split(0)
    with pytest.warns(UserWarning, match=r"^1 of 24 images are left out, because .*07\.png"):
        split = ImageFolder(tmp_path, lazy=lazy, on_error="skip").split(0)
    assert len(split.labelled) + len(split.test) == ROWS - 1
    known = {image.tobytes(): i for i, image in enumerate(pixels())}
    found = [known[image.tobytes()] for p in (split.labelled, split.test) for image in whole(p.inputs)]
    labels = [*split.labelled.labels, *split.test.labels]
    assert sorted(found) == [i for i in range(ROWS) if i != 7]
    assert [i % 2 for i in found] == labels


def test_jpegs_are_whole_or_refused(tmp_path):
    paths = folders(tmp_path, suffix="jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ImageFolder(tmp_path, lazy=True, on_error="skip").split(0).test) == 6
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"02\.jpg: not an image that can be read \(its end is missing\)"):
        ImageFolder(tmp_path, lazy=True).split(0)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (
            lambda root: folders(root / "train"),
            {},
            r"^path: .*the folders of .* look like parts: train\. Give",
        ),
        (
            lambda root: Image.fromarray(pixels()[0]).save(root / "x.png"),
            {},
            r"^path: expected a folder for each",
        ),
        (lambda root: None, {}, r"^path: .* holds no image"),
        (lambda root: folders(root, pixels(rows=1)), {}, r"at least two classes; all labels are 'cat'$"),
        (lambda root: folders(root), {"labels": ["dog"]}, r"^labels: .*'cat' is not$"),
        (lambda root: folders(root), {"parts": Partition(group="owner")}, r"^parts\.group: expected a table"),
        (lambda root: folders(root), {"test_path": "nowhere"}, r"^test_path: there is no folder 'nowhere'$"),
    ],
)
def test_what_a_folder_cannot_be(tmp_path, make, options, words):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        ImageFolder(tmp_path, **options).split(0)


def test_settings_of_no_meaning(tmp_path):
    with pytest.raises(ValueError, match=r"^mode: expected RGB or L; got 'CMYK'$"):
        ImageFolder(tmp_path, mode="CMYK")
    with pytest.raises(ValueError, match=r"^on_error: expected raise or skip; got 'ignore'$"):
        ImageFolder(tmp_path, on_error="ignore")


def test_a_data_set_of_files_keeps_their_order(tmp_path):
    paths = folders(tmp_path)
    files = ImageFiles(paths[::-1], list(range(ROWS)))
    assert files.paths == paths[::-1]
    assert [files[i][1] for i in (0, 5)] == [0, 5]
    np.testing.assert_array_equal(files[1][0], pixels()[ROWS - 2])
