"""Tables in ONNX: every value that a column may hold gives the number that scikit-learn gives."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from export_helpers import frame, student_of, torch_member
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)

from ensdistill.data.preprocess import Transformer, default_transformer
from ensdistill.models import MLP, TabularMLP
from ensdistill.student.export import run_onnx, to_onnx
from ensdistill.student.export.graph import FLOAT, Graph
from ensdistill.student.export.inputs import prepare
from ensdistill.student.export.running import OnnxStudent, feed_of

FRAME = frame()


class Features:
    """The numbers that a preprocess makes in onnxruntime, float32 [N, F]; rows that it refuses are NaN."""

    def __init__(self, transformer, samples):
        from ensdistill.data.samples import as_samples, form

        graph = Graph()
        prepared = prepare(graph, transformer, samples, form(as_samples(samples)))
        made = graph.op("Add", prepared.tensors["inputs"], prepared.refused)
        model = graph.model({"features": (made, FLOAT, [transformer(samples).shape[1]])})
        self.session = onnxruntime.InferenceSession(model.SerializeToString())
        self.feed = feed_of(prepared.about, None, None)

    def __call__(self, samples):
        return self.session.run(None, self.feed(samples))[0]


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


DEFAULTS = {
    (numbers, codes): default_transformer(FRAME, numbers=numbers, codes=codes)
    for numbers in ("quantile", "power", "standard")
    for codes in ((None, 5) if numbers == "quantile" else (5,))
}
GRAPHS = {key: Features(transformer, FRAME) for key, transformer in DEFAULTS.items()}

NUMBERS = st.one_of(
    st.none(),
    st.just(-0.0),
    st.floats(-1e9, 1e9, width=32),
    st.sampled_from(
        [float(v) for name in ("age", "income", "account", "debt") for v in FRAME[name].dropna()]
    ),
    st.sampled_from([1.0, np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0), 2.0**53]),
)
TEXTS = st.one_of(
    st.none(),
    st.sampled_from(
        ["Rom", "Oslo", "Ulm", "clerk", "nurse", "street 3", "(missing)", "", "rom", " Rom", "Ö", "NaN"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "age": NUMBERS,
            "income": NUMBERS,
            "account": NUMBERS,
            "debt": NUMBERS,
            "own": st.sampled_from([True, False, None]),
            "city": TEXTS,
            "job": TEXTS,
            "street": TEXTS,
            "same": NUMBERS,
        }
    ),
    min_size=1,
    max_size=6,
)


def table_of(rows):
    columns = {}
    for name in FRAME.columns:
        values = [row[name] for row in rows]
        numeric = name in ("age", "income", "account", "debt", "same")
        columns[name] = pd.Series(values, dtype=np.float64 if numeric else object)
    return pd.DataFrame(columns)


@pytest.mark.parametrize("key", DEFAULTS, ids=str)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_the_default_gives_scikit_learns_numbers_for_every_value(key, rows):
    table = table_of(rows)
    found = GRAPHS[key](table)
    for row in range(len(table)):  # each row is the same by itself
        one = table.iloc[row : row + 1]
        try:
            expected = DEFAULTS[key](one)
        except ValueError:  # a power of a number far from all others is beyond float32
            expected = np.full_like(found[:1], np.nan)
        assert_same(GRAPHS[key](one), expected)
        assert_same(found[row : row + 1], expected)


@pytest.mark.parametrize("key", DEFAULTS, ids=str)
def test_the_default_gives_scikit_learns_numbers_at_each_quantile_and_beside_it(key):
    quantiles = np.linspace(0, 1, 200)
    columns = {}
    for name in ("age", "income", "account", "debt", "same"):
        at = np.nanquantile(FRAME[name], quantiles, method="nearest").astype(float)
        columns[name] = np.concatenate([at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), at + 1e-7])
    rows = 4 * len(quantiles)
    table = pd.DataFrame(columns).assign(own=True, city="Rom", job="nurse", street="street 1")[FRAME.columns]
    assert len(table) == rows
    assert_same(GRAPHS[key](table), DEFAULTS[key](table))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("column", ["age", "debt"])
def test_an_infinite_number_is_refused_by_the_graph_and_by_its_runner(column, value):
    features = GRAPHS["quantile", None]
    table = FRAME.iloc[:3].astype({column: float})
    table.loc[1, column] = value
    with pytest.raises(ValueError, match=f"column '{column}': expected finite numbers; row 1 has {value}"):
        features(table)
    tensors = {name: tensor.copy() for name, tensor in features.feed(FRAME.iloc[:3]).items()}
    tensors[column][1] = value
    found = features.session.run(None, tensors)[0]
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def numbers_of(random, rows=200, dtype=np.float64):
    x = np.stack(
        [random.normal(size=rows), 10.0**9 + random.integers(0, 9, rows), random.integers(0, 3, rows)], 1
    )
    return x.astype(dtype)


NUMERIC = {
    "standard": StandardScaler(),
    "without a mean": StandardScaler(with_mean=False),
    "without a scale": StandardScaler(with_std=False),
    "range": MinMaxScaler((-1, 2)),
    "clipped range": MinMaxScaler(clip=True),
    "largest": MaxAbsScaler(),
    "robust": RobustScaler(),
    "robust, centred alone": RobustScaler(with_scaling=False),
    "power": PowerTransformer(),
    "power, as it is": PowerTransformer(standardize=False),
    "quantile": QuantileTransformer(n_quantiles=100),
    "few quantiles": QuantileTransformer(n_quantiles=7),
    "normal": QuantileTransformer(n_quantiles=100, output_distribution="normal"),
    "quantiles of many": QuantileTransformer(n_quantiles=200),
    "mean": SimpleImputer(),
    "most frequent": SimpleImputer(strategy="most_frequent"),
    "constant": SimpleImputer(strategy="constant", fill_value=-3),
    "flags": SimpleImputer(add_indicator=True),
    "products": PolynomialFeatures(3),
    "products of two": PolynomialFeatures(2, interaction_only=True, include_bias=False),
    "log": FunctionTransformer(np.abs),
    "union": make_union(StandardScaler(), PolynomialFeatures(2)),
    "steps": make_pipeline(SimpleImputer(add_indicator=True), StandardScaler(), PolynomialFeatures(2)),
    "bins": KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    "unit length": Normalizer(),
    "binary": Binarizer(threshold=0.5),
}


@pytest.mark.filterwarnings("ignore:Bins whose width", "ignore:Feature 1 is constant")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NUMERIC)
def test_transformers_of_numbers_give_scikit_learns_numbers(name, dtype):
    from sklearn.base import clone

    random = np.random.default_rng(3)
    if name == "normal" and dtype == np.float32:
        pytest.skip("scikit-learn's bounds depend on the rounding of float32 at repeated extremes")
    x = numbers_of(random, dtype=dtype)
    x[:, 1] -= 1e9 if name.startswith("power") else 0
    with_gaps = name in ("mean", "most frequent", "constant", "flags", "steps")
    if with_gaps:
        x[random.random(x.shape) < 0.2] = np.nan
    transformer = Transformer(clone(NUMERIC[name]).fit(x))
    features = Features(transformer, x)
    new = numbers_of(random, dtype=dtype)
    new[:, 1] -= 1e9 if name.startswith("power") else 0
    new[:40] = x[:40]
    new[40:50, 1] = -0.0
    expected = transformer(new)
    # float32 columns are computed in float32 by scikit-learn, whose rounding of 1e9 is coarser.
    scale = np.abs(expected).max(0)
    coarse = 2e-6 if dtype == np.float64 else 3e-4
    assert (np.abs(features(new) - expected) <= coarse * np.maximum(1, scale)).all()


ENCODERS = {
    "one-hot": OneHotEncoder(handle_unknown="ignore"),
    "without the first": OneHotEncoder(handle_unknown="ignore", drop="first"),
    "binary in one": OneHotEncoder(drop="if_binary", handle_unknown="infrequent_if_exist", min_frequency=5),
    "at most four": OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=4),
    "codes": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    "few codes": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=7, encoded_missing_value=9, max_categories=3
    ),
}


@pytest.mark.filterwarnings("ignore:Found unknown categories")
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    "columns", [["city", "job", "street"], ["age", "same", "own"], ["age", "job", "debt"]]
)
def test_encoders_give_scikit_learns_numbers(name, columns):
    from sklearn.base import clone

    encoder = clone(ENCODERS[name]).fit(FRAME[columns])
    transformer = Transformer(encoder)
    features = Features(transformer, FRAME[columns])
    assert_same(features(FRAME[columns]), transformer(FRAME[columns]))
    new = frame(200, seed=1)[columns]
    for column in columns:
        numeric = column in ("age", "same", "debt")
        new[column] = new[column].astype(float) if numeric else new[column]
        new.loc[:9, column] = -0.5 if numeric else False if column == "own" else "never"
        gaps = new[column].astype(float if numeric else object)
        gaps[10:20] = np.nan
        new[column] = gaps if FRAME[column].isna().any() else new[column]
    assert_same(features(new), transformer(new))


def test_an_empty_text_may_be_a_category_beside_gaps():
    table = pd.DataFrame({"word": ["", "a", None, "b"] * 10})
    for transformer in (default_transformer(table, rare=1), Transformer(OneHotEncoder().fit(table))):
        features = Features(transformer, table)
        expected = transformer(table)
        assert len(np.unique(expected, axis=0)) == 4
        assert_same(features(table), expected)


def test_categories_that_are_numbers_are_texts():
    values = np.array([1, 2, 3, 2, 1] * 8)
    table = pd.DataFrame({"grade": pd.Categorical(values), "ratio": pd.Categorical(values / 2)})
    table.loc[3, "grade"] = None
    transformer = default_transformer(table, rare=1)
    features = Features(transformer, table)
    assert_same(features(table), transformer(table))
    assert len(np.unique(transformer(table), axis=0)) == 4


def test_a_threshold_is_exact():
    x = np.array([[0.1], [np.nextafter(0.1, 1)], [np.nextafter(0.1, 0)], [0.5], [1.0]])
    binary = Transformer(Binarizer(threshold=0.1).fit(x))
    np.testing.assert_array_equal(Features(binary, x)(x), binary(x))
    bins = Transformer(KBinsDiscretizer(3, encode="onehot", strategy="uniform").fit(x))
    edges = bins.transformer.bin_edges_[0]
    near = np.concatenate([edges, np.nextafter(edges, 1), np.nextafter(edges, 0)])[:, None]
    np.testing.assert_array_equal(Features(bins, x)(near), bins(near))


@pytest.mark.parametrize("classes", [2, 3])
def test_target_encoding_gives_scikit_learns_numbers(classes):
    y = np.arange(len(FRAME)) % classes
    columns = ["city", "street"]
    encoder = TargetEncoder(random_state=0).fit(FRAME[columns], y)
    features = Features(Transformer(encoder), FRAME[columns])
    new = frame(100, seed=2)[columns]
    new.loc[:3, "street"] = "never"
    assert_same(features(new), np.asarray(encoder.transform(new), np.float32))


def test_normal_quantiles_are_those_of_scipy():
    from scipy.special import ndtri

    x = np.sort(np.random.default_rng(0).random(2000))[:, None]
    transformer = Transformer(QuantileTransformer(n_quantiles=2000, output_distribution="normal").fit(x))
    new = np.concatenate([np.linspace(-0.01, 1.01, 5000), x[:, 0], np.geomspace(1e-9, 0.1, 200) + x[0, 0]])[
        :, None
    ]
    found = Features(transformer, x)(new)[:, 0]
    assert_same(found, transformer(new)[:, 0])
    assert found.min() == pytest.approx(ndtri(1e-7), rel=1e-5)


def test_a_column_transformer_of_the_user_is_exported():
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["debt", "income"]),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(pattern="city|street")),
        ("drop", ["job"]),
        ("passthrough", [0, 2]),
        remainder=MinMaxScaler(),
    )
    table = FRAME.drop(columns=["own"])
    transformer = Transformer(columns.fit(table))
    new = frame(50, seed=4).drop(columns=["own"])
    features = Features(transformer, table)
    assert_same(features(new), transformer(new))


def test_a_category_that_the_encoder_refuses_is_refused():
    columns = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age"]))
    transformer = Transformer(columns.fit(FRAME))
    width = transformer(FRAME).shape[1]
    student = student_of(torch_member(partial(MLP, width, [4], 3), transformer), FRAME)
    exported = to_onnx(student, FRAME)
    blob = exported.model.SerializeToString()
    with pytest.raises(ValueError, match=r"refuses row 1 \(1 such rows\)"):
        run_onnx(blob, FRAME.iloc[:3].assign(city=["Rom", "Paris", "Rom"]))
    with pytest.raises(ValueError, match=r"refuses row 0"):
        run_onnx(blob, FRAME.iloc[:1].assign(age=np.nan))


@pytest.mark.parametrize("numbers", ["quantile", "power"])
def test_a_table_with_embeddings_is_one_graph(numbers, tmp_path):
    transformer = default_transformer(FRAME, numbers=numbers, codes=20)
    factory = partial(
        TabularMLP,
        transformer(FRAME).shape[1],
        transformer.numeric,
        transformer.cardinalities,
        hidden=[8],
        outputs=3,
    )
    student = student_of(torch_member(factory, transformer), FRAME, temperature=1.7)
    exported = to_onnx(student, FRAME)
    assert exported.largest_difference < 1e-6
    exported.save(tmp_path / "s.onnx")
    new = frame(500, seed=5).assign(city="Paris")
    labels, probabilities = run_onnx(tmp_path / "s.onnx", new)
    np.testing.assert_allclose(probabilities, student.predict_proba(new), atol=1e-6)
    assert labels.tolist() == student.predict(new).tolist()
    runner = OnnxStudent(tmp_path / "s.onnx")
    assert runner.about["kind"] == "table"
    assert [c["name"] for c in runner.about["columns"]] == list(FRAME.columns)
    assert [c["type"] for c in runner.about["columns"]][:2] == ["integer", "float"]


def test_columns_may_have_the_names_of_outputs_and_of_nodes():
    table = FRAME[["age", "city"]].rename(columns={"age": "label", "city": "constant_0"})
    table["probabilities"], table["Gather_1"] = FRAME["income"], FRAME["job"]
    transformer = default_transformer(table)
    student = student_of(torch_member(partial(MLP, transformer(table).shape[1], [4], 3), transformer), table)
    exported = to_onnx(student, table)
    assert exported.largest_difference < 1e-6
    names = [value.name for value in exported.model.graph.input]
    assert names == ["column 0", "constant_0", "column 2", "Gather_1"]


def test_frames_of_other_libraries_give_the_same(tmp_path):
    import polars as pl
    import pyarrow as pa

    transformer = default_transformer(FRAME)
    student = student_of(torch_member(partial(MLP, transformer(FRAME).shape[1], [4], 3), transformer), FRAME)
    blob = to_onnx(student, FRAME).model.SerializeToString()
    expected = run_onnx(blob, FRAME)[1]
    arrow = pa.Table.from_pandas(FRAME)
    for other in (
        pl.from_pandas(FRAME),
        arrow,
        FRAME[FRAME.columns[::-1]],
        FRAME.astype({"city": "category"}),
    ):
        np.testing.assert_array_equal(run_onnx(blob, other)[1], expected)


def test_nullable_types_and_decimals_give_the_same():
    import polars as pl
    import pyarrow as pa

    transformer = default_transformer(FRAME)
    student = student_of(torch_member(partial(MLP, transformer(FRAME).shape[1], [4], 3), transformer), FRAME)
    blob = to_onnx(student, FRAME).model.SerializeToString()
    plain = FRAME.assign(age=FRAME["age"].astype(float), own=FRAME["own"].astype(object))
    plain.loc[3, ["age", "own", "city"]] = [np.nan, None, np.nan]
    expected = run_onnx(blob, plain)[1]
    np.testing.assert_allclose(expected, student.predict_proba(plain), atol=1e-6)
    nullable = plain.convert_dtypes()
    assert nullable["own"].iloc[3] is pd.NA
    arrow, polars = pa.Table.from_pandas(nullable), pl.from_pandas(nullable)
    decimals = polars.with_columns(pl.col("account").cast(pl.Decimal(20, 0)))
    for other in (nullable, arrow, polars, decimals, arrow.to_pandas(types_mapper=pd.ArrowDtype)):
        np.testing.assert_array_equal(run_onnx(blob, other)[1], expected)


@pytest.mark.parametrize("fill", [None, 0.1])
def test_gaps_of_float32_columns_are_filled_in_float32(fill):
    # No float32 is 0.1, nor the middle of two neighbours. Where quantiles repeat, the value beside them is far.
    x = np.sort(np.random.default_rng(8).normal(size=100)).astype(np.float32)
    x[20] = np.nextafter(x[19], np.float32(9))
    x[40:] = np.nan
    imputer = (
        SimpleImputer(strategy="median")
        if fill is None
        else SimpleImputer(strategy="constant", fill_value=fill)
    )
    transformer = Transformer(make_pipeline(imputer, QuantileTransformer(n_quantiles=100)).fit(x[:, None]))
    assert_same(Features(transformer, x[:, None])(x[:, None]), transformer(x[:, None]))


def test_other_columns_are_refused_by_name():
    transformer = default_transformer(FRAME)
    student = student_of(torch_member(partial(MLP, transformer(FRAME).shape[1], [4], 3), transformer), FRAME)
    blob = to_onnx(student, FRAME).model.SerializeToString()
    with pytest.raises(ValueError, match=r"missing: \['age'\]"):
        run_onnx(blob, FRAME.rename(columns={"age": "years"}))
    with pytest.raises(ValueError, match="column 'age': expected numbers; row 0 has 'old'"):
        run_onnx(blob, FRAME.assign(age="old"))
    with pytest.raises(ValueError, match=r"column 'city': expected texts; row 0 has 3"):
        run_onnx(blob, FRAME.assign(city=3))


@pytest.mark.parametrize(
    ("transformer", "words"),
    [
        (FunctionTransformer(np.cbrt), r"FunctionTransformer\(cbrt\), which is Python code"),
        (SimpleImputer(missing_values=0), "missing_values=0"),
    ],
)
def test_what_onnx_cannot_express_is_refused_by_name(transformer, words):
    x = np.random.default_rng(0).random((20, 2)) + 1
    fitted = Transformer(transformer.fit(x))
    student = student_of(torch_member(partial(MLP, 2, [4], 3), fitted), x)
    with pytest.raises(ValueError, match=f"ONNX can't express .*{words}.*--to torch"):
        to_onnx(student, x)


def test_the_graph_is_a_checked_model_of_the_stated_opset():
    transformer = default_transformer(FRAME)
    student = student_of(torch_member(partial(MLP, transformer(FRAME).shape[1], [4], 3), transformer), FRAME)
    exported = to_onnx(student, FRAME)
    onnx.checker.check_model(exported.model, full_check=True)
    assert exported.opset == 18
    newer = to_onnx(student, FRAME, opset=20)
    assert newer.opset == 20
    assert newer.largest_difference < 1e-6
    with pytest.raises(ValueError, match="opset: expected 18 to 21; got 17"):
        to_onnx(student, FRAME, opset=17)
