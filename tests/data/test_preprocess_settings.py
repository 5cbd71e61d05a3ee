"""Settings of preprocessing, fitted to samples; functions, modules and categories as preprocessing."""

from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from ensdistill.data.batches import hashes
from ensdistill.data.preprocess import (
    Categories,
    HashedNgrams,
    ImageTransform,
    ModuleTransform,
    TableDefaults,
    Tokens,
    Transformer,
    as_preprocess,
    default_transformer,
    fitted,
    load_preprocess,
    trusted_by,
)
from ensdistill.data.preprocess import settings as settings_module
from tests.data.test_preprocess import tokenizer

FRAME = pd.DataFrame(
    {
        "city": ["Rome", "Oslo", None, "Rome", "Bonn", "Oslo"],
        "age": [3.0, np.nan, 5.0, 1.0, 2.0, 8.0],
        "count": [1, 2, 3, 4, 5, 6],
        "member": [True, False, True, True, False, False],
        "grade": pd.Categorical([1, 2, 1, 2, None, 3]),
    }
)


def lengths(batch):
    return np.array([[len(text)] for text in batch], np.float32)


class Frames(Dataset):
    """Rows of a frame, as a lazy data set."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read += 1
        return self.rows[index]


def test_auto_goes_by_the_kind_of_the_samples():
    assert fitted("auto", np.zeros((4, 3))) is None
    assert fitted("auto", torch.zeros(4, 3)) is None
    assert fitted("auto", {"ids": np.zeros((4, 3), np.int64)}) is None
    assert fitted(None, FRAME) is None
    assert fitted("auto", ["a text", "another"]) == HashedNgrams()
    assert isinstance(fitted("auto", FRAME), Transformer)
    images = [np.full((6, 6, 3), 255, np.uint8), np.zeros((8, 9, 3), np.uint8)]
    made = fitted("auto", images)
    assert made.size == 6
    assert len(made.mean) == 3
    assert made(images).amin((1, 2, 3)).tolist() == [1.0, -1.0]
    wide = fitted("auto", [np.zeros((4, 6), np.uint8)])
    assert wide == ImageTransform(mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("numbers", ["quantile", "power", "standard"])
def test_table_defaults_are_the_default_transformer(numbers):
    made = fitted(TableDefaults(numbers=numbers, rare=1), FRAME, seed=3)
    first = made(FRAME)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    with pytest.raises(ValueError, match=r"column 'age': expected float, as at the fit; got text"):
        made(FRAME.assign(age="old"))
    with pytest.raises(ValueError, match="missing: 'age'"):
        made(FRAME.drop(columns="age"))


def test_a_transformer_is_fitted_to_the_samples_unless_it_is_fitted():
    x = np.array([[1.0], [3.0]])
    own = StandardScaler()
    assert fitted(own, x)(x).tolist() == [[-1.0], [1.0]]
    assert not hasattr(own, "mean_")
    assert fitted(own.fit(x), x * 10)(x).tolist() == [[-1.0], [1.0]]
    texts = ["a red fox", "a fox"]
    assert fitted(TfidfVectorizer(), texts)(texts).shape == (2, 2)


def test_many_lazy_samples_are_fitted_by_a_part_of_them(monkeypatch):
    monkeypatch.setattr(settings_module, "FITTED_ROWS", 5)
    samples = Frames([np.array([float(i)]) for i in range(50)])
    first = fitted(StandardScaler(), samples, seed=1)
    assert samples.read <= 6
    assert fitted(StandardScaler(), samples, seed=1).fingerprint() == first.fingerprint()
    assert fitted(StandardScaler(), samples, seed=2).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_categories_are_those_of_the_fit_in_every_library(library, tmp_path):
    frame = FRAME.astype({"grade": "str"}) if library != "pandas" else FRAME.astype({"grade": "str"}).copy()
    frame["grade"] = frame["grade"].where(FRAME["grade"].notna(), None)
    plain = pa.Table.from_pandas(frame)
    given = {"pandas": frame, "polars": pl.from_arrow(plain), "pyarrow": plain}[library]
    made = Categories().fit(given)
    result = made(given)
    assert list(result.columns) == list(FRAME.columns)
    assert result["city"].cat.categories.tolist() == ["Bonn", "Oslo", "Rome"]
    assert result["city"].astype("str").fillna("-").tolist() == FRAME["city"].fillna("-").tolist()
    assert result["member"].dtype == bool
    assert result["count"].dtype == "int64"
    np.testing.assert_array_equal(result["age"], FRAME["age"])
    made.save(tmp_path / "p")
    loaded = load_preprocess(tmp_path / "p")
    assert loaded.fingerprint() == made.fingerprint()
    pd.testing.assert_frame_equal(loaded(given), result)


def test_unseen_and_missing_values_are_missing_or_a_category_of_their_own():
    later = FRAME.assign(city=["Paris", "Oslo", None, "Rome", "Bonn", "Oslo"])
    assert Categories().fit(FRAME)(later)["city"].isna().tolist() == [True, False, True, False, False, False]
    own = Categories(missing="(missing)").fit(FRAME)(later)["city"]
    assert own.tolist() == ["(missing)", "Oslo", "(missing)", "Rome", "Bonn", "Oslo"]
    few = Categories(most=2).fit(FRAME)
    assert few.categories["city"] == ["Oslo", "Rome"]


def test_categories_keep_their_codes_in_a_batch_of_one_row():
    made = Categories().fit(FRAME)
    whole = made(FRAME)
    for row in range(len(FRAME)):
        one = made(FRAME.iloc[row : row + 1])
        for name in ("city", "grade"):
            assert one[name].dtype == whole[name].dtype
            assert one[name].cat.codes.tolist() == whole[name].cat.codes.tolist()[row : row + 1]


def test_categories_refuse_columns_unlike_those_of_the_fit():
    made = Categories().fit(FRAME)
    with pytest.raises(ValueError, match=r"column 'age': expected float, as at the fit; got text"):
        made(FRAME.assign(age="old"))
    with pytest.raises(ValueError, match=r"column 'city': expected text, as at the fit; got integer"):
        made(FRAME.assign(city=3))
    with pytest.raises(ValueError, match="missing: 'city'"):
        made(FRAME.drop(columns="city"))
    with pytest.raises(TypeError, match="column 'day': expected numbers or categories; got a time"):
        Categories().fit(FRAME.assign(day=pd.Timestamp("2020-01-01")))


def test_categories_are_compared_by_name(tmp_path):
    numbers = pd.DataFrame({"grade": pd.Categorical([1, 2, 3, 2]), "x": np.arange(4.0)})
    made = Categories().fit(numbers)
    texts = pd.DataFrame({"grade": ["3", "1", None, "4"], "x": np.arange(4.0)})
    assert made(numbers)["grade"].cat.codes.tolist() == [0, 1, 2, 1]
    assert made(texts)["grade"].cat.codes.tolist() == [2, 0, -1, -1]
    assert Categories().fit(texts)(numbers)["grade"].tolist()[::2] == ["1", "3"]
    made.save(tmp_path / "p")
    pd.testing.assert_frame_equal(load_preprocess(tmp_path / "p")(texts), made(texts))
    both = numbers.assign(grade=pd.Categorical([1, "1", 2, 2]))
    with pytest.raises(
        ValueError, match="column 'grade': expected categories of different names; two are '1'"
    ):
        Categories().fit(both)


def test_gaps_beside_integers_and_booleans_become_floats():
    frame = pd.DataFrame({"n": pd.array([1, None, 3], "Int64"), "b": [True, None, False]})
    result = Categories().fit(frame)(frame)
    assert result["n"].tolist()[::2] == [1.0, 3.0]
    assert np.isnan(result["n"][1])
    assert result["b"].tolist()[::2] == [1.0, 0.0]
    assert np.isnan(result["b"][1])
    assert all(dtype == np.float64 for dtype in result.dtypes)


def test_a_function_is_named_by_its_path_and_trusted_by_it(tmp_path):
    for made in (as_preprocess(lengths), fitted(f"{__name__}.lengths", ["abc"])):
        assert made(["abc"]).tolist() == [[3.0]]
        made.save(tmp_path / "p")
        with pytest.raises(ValueError, match="lengths is not trusted"):
            load_preprocess(tmp_path / "p")
        loaded = load_preprocess(tmp_path / "p", trusted_by(made))
        assert loaded.fingerprint() == made.fingerprint()
        assert loaded(["ab"]).tolist() == [[2.0]]
    with pytest.raises(ValueError, match="expected a function that can be imported by its path"):
        as_preprocess(lambda batch: batch)
    with pytest.raises(ValueError, match="expected the import path of a function"):
        as_preprocess("no_such_module.function")


def test_a_module_is_called_in_eval_mode_and_built_again(tmp_path):
    module = nn.BatchNorm1d(3)
    module(torch.randn(50, 3) * 4 + 1)
    made = ModuleTransform(module, factory=partial(nn.BatchNorm1d, num_features=3))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = made(x)
    assert torch.equal(made(x[:1])[0], first[0])
    assert module.training
    assert not made(torch.from_numpy(x)).requires_grad
    assert made(torch.from_numpy(x).requires_grad_()).requires_grad
    made.save(tmp_path / "p")
    loaded = load_preprocess(tmp_path / "p")
    assert torch.equal(loaded(x), first)
    assert loaded.fingerprint() == made.fingerprint()
    module.running_mean += 1
    assert made.fingerprint() != loaded.fingerprint()
    with pytest.raises(ValueError, match="can't be saved without a factory"):
        as_preprocess(module).save(tmp_path / "q")


def test_modules_with_other_parts_have_other_fingerprints():
    one, other = (ModuleTransform(nn.Sequential(part)).fingerprint() for part in (nn.ReLU(), nn.Tanh()))
    assert one != other


def test_images_are_given_to_a_module_one_by_one():
    sizes = [np.full((4, 6, 3), 9, np.uint8), np.full((8, 2, 3), 5, np.uint8)]

    class Pooled(nn.Module):
        def forward(self, image):
            assert image.dtype == torch.uint8
            return nn.functional.adaptive_max_pool2d(image.float(), 2)

    made = as_preprocess(Pooled())
    assert made(sizes).shape == (2, 3, 2, 2)
    assert made(sizes)[1].unique().tolist() == [5.0]


def test_a_tokenizer_needs_a_length():
    own = tokenizer()
    with pytest.raises(ValueError, match="expected a tokenizer with a length"):
        as_preprocess(own)
    own.enable_truncation(7)
    made = as_preprocess(own)
    assert isinstance(made, Tokens)
    assert made.length == 7
    assert made.buckets == max(own.get_vocab().values())


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="expected a Preprocess, a fitted scikit-learn transformer"):
        fitted(3, np.zeros((2, 2)))
    with pytest.raises(TypeError, match="expected a table"):
        Categories().fit(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="numbers: expected quantile"):
        TableDefaults(numbers="other")


def test_the_samples_stay_as_they_were():
    before = hashes(FRAME)
    fitted("auto", FRAME)(FRAME)
    Categories().fit(FRAME)(FRAME)
    np.testing.assert_array_equal(hashes(FRAME), before)


def test_nullable_booleans_have_one_code_with_and_without_gaps():
    frame = pd.DataFrame({"b": pd.array([True, False, None] * 10, "boolean"), "x": np.arange(30.0)})
    fitted = default_transformer(frame)
    assert fitted(frame)[:3, -1].tolist() == [1.0, 0.0, -1.0]
    assert fitted(frame[:2])[:, -1].tolist() == [1.0, 0.0]
    assert fitted(frame[:2].astype({"b": bool}))[:, -1].tolist() == [1.0, 0.0]
