"""Members with a preprocess of their own: their logits for raw samples, saved and loaded."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from ensdistill.common.files import read_json, write_json
from ensdistill.data.preprocess import HashedNgrams, ImageTransform, Tokens, Transformer, trusted_by
from ensdistill.data.samples import Held
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import Preprocessed, SklearnMember, TorchMember, as_member, load_member
from tests.data.test_preprocess import TEXTS, tokenizer


def doubled(batch):
    return np.asarray(batch, np.float32) * 2


def short(batch):
    return np.zeros((1, 4), np.float32)


class Bag(nn.Module):
    """A mean of embeddings."""

    def __init__(self, buckets=50, outputs=3):
        super().__init__()
        self.embedding, self.head = nn.EmbeddingBag(buckets + 1, 4, padding_idx=0), nn.Linear(4, outputs)

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Masked(nn.Module):
    """Takes token ids with their mask, by name."""

    def __init__(self, buckets=100, outputs=3):
        super().__init__()
        self.embedding, self.head = nn.Embedding(buckets, 4), nn.Linear(4, outputs)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


class Lazily(Dataset):
    """Items of a list, read one by one."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def scaled_problem():
    generator = np.random.default_rng(0)
    x = generator.normal(3, 5, (60, 4))
    return x, (x[:, 0] > 3).astype(int) + (x[:, 1] > 4)


def own(module, batch):
    with torch.no_grad():
        return module.eval()(**batch).numpy() if isinstance(batch, dict) else module.eval()(batch).numpy()


def test_an_estimator_and_a_network_each_behind_its_own_scaler():
    x, y = scaled_problem()
    scaler = StandardScaler().fit(x)
    linear = LogisticRegression().fit(scaler.transform(x), y)
    net = MLP(4, [8], 3)
    ensemble = Ensemble.from_members([(linear, scaler), (net, scaler)])
    assert ensemble.names == ("logisticregression", "mlp")
    raw = ensemble.raw_logits(x)
    np.testing.assert_allclose(np.exp(raw[0]), linear.predict_proba(scaler.transform(x)), rtol=0, atol=2e-6)
    expected = own(net, torch.from_numpy(scaler.transform(x).astype(np.float32)))
    np.testing.assert_allclose(raw[1], expected, rtol=0, atol=1e-6)


def test_texts_images_and_mappings_reach_modules_by_their_preprocess():
    bag, masked = Bag(), Masked()
    grams, tokens = HashedNgrams(buckets=50, length=8), Tokens(tokenizer(), length=10)
    raw = Ensemble.from_members([(bag, grams), (masked, tokens)]).raw_logits(TEXTS)
    np.testing.assert_allclose(raw[0], own(bag, torch.from_numpy(grams(TEXTS))), rtol=0, atol=1e-6)
    inputs = {name: torch.from_numpy(part) for name, part in tokens(TEXTS).items()}
    np.testing.assert_allclose(raw[1], own(masked, inputs), rtol=0, atol=1e-6)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (*size, 3)).astype(np.uint8) for size in ((9, 12), (20, 7), (8, 8))]
    cnn, transform = CNN([4], (3, 8, 8), outputs=3), ImageTransform(size=8)
    raw = Ensemble.from_members([(cnn, transform)]).raw_logits(images)
    np.testing.assert_allclose(raw[0], own(cnn, transform(images)), rtol=0, atol=1e-5)


def test_a_split_s_samples_are_predicted_as_their_batch_is():
    member = as_member((Bag(), HashedNgrams(buckets=50, length=8)))
    np.testing.assert_array_equal(member.predict_logits(Held(TEXTS)), member.predict_logits(TEXTS))


@pytest.mark.parametrize("rows", [1, 5, 13])
def test_a_mapping_is_the_modules_keyword_arguments_in_batches_of_any_size(rows):
    masked = Masked()
    generator = np.random.default_rng(0)
    ids = {
        "input_ids": generator.integers(0, 100, (rows, 6)),
        "attention_mask": generator.integers(0, 2, (rows, 6)),
    }
    expected = own(masked, {name: torch.from_numpy(part) for name, part in ids.items()})
    found = as_member(TorchMember(masked, batch_size=4)).predict_logits(ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    tensors = {name: torch.from_numpy(part) for name, part in ids.items()}
    # Other batches than those of 4 rows: some processors' last bits depend on them, as above.
    whole = Ensemble.from_members([masked]).raw_logits(tensors)[0]
    np.testing.assert_allclose(whole, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [3, 2050])
def test_lazy_samples_are_read_in_batches(count):
    x = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    ensemble = Ensemble.from_members([MLP(4, [8], 3), MLP(4, [], 3)])
    lazily = ensemble.predict_proba(Lazily(list(x)))
    np.testing.assert_allclose(lazily, ensemble.predict_proba(x), rtol=0, atol=1e-6)
    texts = Lazily(TEXTS)
    bag = Ensemble.from_members([(Bag(), HashedNgrams(buckets=50, length=8))])
    np.testing.assert_array_equal(bag.raw_logits(texts), bag.raw_logits(TEXTS))


def every_member():
    x, y = scaled_problem()
    scaler = StandardScaler().fit(x)
    module = nn.Sequential(nn.BatchNorm1d(4))
    return {
        "estimator": (as_member((LogisticRegression().fit(scaler.transform(x), y), scaler)), x),
        "network": (
            Preprocessed(TorchMember(Bag(), factory=partial(Bag, buckets=50)), HashedNgrams(buckets=50)),
            TEXTS,
        ),
        "tokens": (Preprocessed(TorchMember(Masked(), factory=Masked), Tokens(tokenizer(), length=9)), TEXTS),
        "function": (
            as_member(
                (TorchMember(MLP(4, [8], 3), factory=partial(MLP, inputs=4, hidden=[8], outputs=3)), doubled)
            ),
            x,
        ),
        "unsaved": (as_member((MLP(4, [8], 3), module)), x.astype(np.float32)),
    }


TRUSTED = {
    "network": (f"{__name__}.Bag",),
    "tokens": (f"{__name__}.Masked",),
    "function": (f"{__name__}.doubled",),
}


@pytest.mark.parametrize("name", ["estimator", "network", "tokens", "function"])
def test_it_is_loaded_as_it_was_saved(name, tmp_path):
    member, batch = every_member()[name]
    expected = member.predict_logits(batch)
    ensemble = Ensemble.from_members([member])
    ensemble.save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e", trusted=TRUSTED.get(name, ()))
    np.testing.assert_array_equal(loaded.members[0].predict_logits(batch), expected)
    assert loaded.fingerprint() == ensemble.fingerprint()
    assert "preprocess" in loaded.fingerprint()["parts"][member.name]
    if needed := trusted_by(member.preprocess):
        with pytest.raises(ValueError, match="is not trusted"):
            load_member(tmp_path / "e" / "members" / member.name)
        assert list(needed) == member.untrusted(())


def test_a_changed_preprocess_is_found(tmp_path):
    x, y = scaled_problem()
    scaler = StandardScaler().fit(x)
    model = LogisticRegression().fit(scaler.transform(x), y)
    member = as_member((model, scaler))
    member.save(tmp_path / "m")
    other = Preprocessed(SklearnMember(model), Transformer(StandardScaler().fit(2 * x)))
    assert other.fingerprint() != member.fingerprint()
    assert [k for k, v in other.fingerprint_parts().items() if v != member.fingerprint_parts()[k]] == [
        "preprocess"
    ]
    other.preprocess.save(tmp_path / "m" / "preprocess")
    with pytest.raises(ValueError, match="the files are not those that were saved"):
        load_member(tmp_path / "m")
    about = read_json(tmp_path / "m" / "preprocess" / "preprocess.json")
    write_json(tmp_path / "m" / "preprocess" / "preprocess.json", {**about, "format": 99})
    with pytest.raises(ValueError, match=r"preprocess\.json has format 99"):
        load_member(tmp_path / "m")


def test_a_module_without_a_factory_predicts_but_is_not_saved(tmp_path):
    member, batch = every_member()["unsaved"]
    assert member.predict_logits(batch).shape == (60, 3)
    with pytest.raises(ValueError, match="without a factory"):
        Ensemble.from_members([member]).save(tmp_path / "e")


def test_classes_and_names_are_those_of_the_model():
    x, y = scaled_problem()
    scaler = StandardScaler().fit(x)
    named = LogisticRegression().fit(scaler.transform(x), np.array(["a", "b", "c"])[y])
    by_index = LogisticRegression().fit(scaler.transform(x), y)
    ensemble = Ensemble.from_members([(named, scaler), (by_index, scaler)], classes=["c", "b", "a"])
    assert ensemble.names == ("logisticregression-1", "logisticregression-2")
    p = ensemble.raw_logits(x)
    np.testing.assert_allclose(
        np.exp(p[0]), named.predict_proba(scaler.transform(x))[:, ::-1], rtol=0, atol=2e-6
    )
    np.testing.assert_allclose(np.exp(p[1]), by_index.predict_proba(scaler.transform(x)), rtol=0, atol=2e-6)


def test_wrong_uses_are_refused():
    x, _ = scaled_problem()
    member = as_member((MLP(4, [8], 3), doubled))
    with pytest.raises(ValueError, match="mlp has one already"):
        as_member((member, doubled))
    with pytest.raises(ValueError, match="holds stored outputs"):
        as_member((np.zeros((3, 2)), doubled))
    with pytest.raises(ValueError, match="expected as many rows as there are samples, 60; got 1"):
        as_member((MLP(4, [8], 3), short)).predict_logits(x)
    with pytest.raises(
        TypeError, match=r"mlp takes an array, or a mapping of arrays; got a batch of kind 'text'"
    ):
        Ensemble.from_members([MLP(4, [8], 3)]).predict_proba(TEXTS)
    with pytest.raises(TypeError, match="got a batch of kind 'table'"):
        Ensemble.from_members([MLP(4, [8], 3)]).predict_proba(pd.DataFrame({"a": [1.0]}))
    with pytest.raises(TypeError, match="preprocess: expected a Preprocess"):
        as_member((MLP(4, [8], 3), 3))


class Counted(Transformer):
    """Counts its calls."""

    calls = 0

    def __call__(self, batch):
        Counted.calls += 1
        return super().__call__(batch)


@pytest.mark.parametrize("way", ["one_by_one", "stacked"])
def test_members_with_equal_preprocessing_share_its_work(way, recwarn):
    x, _ = scaled_problem()
    scalers = [Counted(StandardScaler().fit(x)) for _ in range(3)]
    networks = [MLP(4, [8], 3) for _ in range(3)]
    alone = [
        Preprocessed(TorchMember(net), scaler).predict_logits(x)
        for net, scaler in zip(networks, scalers, strict=True)
    ]
    ensemble = Ensemble.from_members(list(zip(networks, scalers, strict=True)))
    Counted.calls = 0
    found = ensemble.raw_logits(x, way)
    assert Counted.calls == 1
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)
    assert not recwarn.list
    other = Ensemble.from_members(
        [(networks[0], StandardScaler().fit(x)), (networks[1], StandardScaler().fit(2 * x))]
    )
    assert not np.allclose(other.raw_logits(x, way)[1], alone[1], atol=1e-3)


def test_the_preprocess_of_the_page_on_extending(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    code = page.split("# my_preprocess.py")[1].split("```")[0]
    (tmp_path / "my_preprocess.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_preprocess

    module = MLP(2, [], 3)
    member = as_member(
        (
            TorchMember(module, factory=partial(MLP, inputs=2, hidden=[], outputs=3)),
            my_preprocess.Lengths(False),
        )
    )
    ensemble = Ensemble.from_members([member])
    counts = np.array([[len(text.split()), len(text)] for text in TEXTS], np.float32)
    np.testing.assert_array_equal(ensemble.raw_logits(TEXTS)[0], TorchMember(module).predict_logits(counts))
    ensemble.save(tmp_path / "e")
    with pytest.raises(ValueError, match=r"my_preprocess.Lengths is not trusted"):
        Ensemble.load(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e", trusted=["my_preprocess.Lengths"])
    assert loaded.members[0].preprocess == my_preprocess.Lengths(False)
    np.testing.assert_array_equal(loaded.raw_logits(TEXTS), ensemble.raw_logits(TEXTS))


def test_a_transformer_with_its_tokenizer_is_equal_to_the_librarys_own(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    own_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]", model_max_length=40
    )
    config = BertConfig(
        vocab_size=len(own_tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        num_labels=3,
    )
    bert = BertForSequenceClassification(config).eval()
    member = as_member((bert, own_tokenizer))
    assert member.preprocess.length == 24
    tokens = own_tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = bert(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
    np.testing.assert_allclose(member.predict_logits(TEXTS), expected.numpy(), rtol=0, atol=1e-5)
    Ensemble.from_members([member]).save(tmp_path / "e")
    loaded = Ensemble.load(tmp_path / "e")
    np.testing.assert_array_equal(loaded.members[0].predict_logits(TEXTS), member.predict_logits(TEXTS))
