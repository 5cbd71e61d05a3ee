"""Odd torch modules and Hugging Face models, drawn at random: the member predicts as the module itself does,
also saved and loaded."""

import functools
import tempfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from ensdistill.teachers.members import TorchMember, load_member

DTYPES = {
    "float32": (torch.float32, 1e-5),
    "float64": (torch.float64, 1e-5),
    "bfloat16": (torch.bfloat16, 0.05),
}
DTYPES["float16"] = (torch.float16, 5e-3)
PROPERTY = {"deadline": None, "derandomize": True, "database": None}


class Odd(nn.Module):
    """Images [N, 2, 4, 4] to five classes, or to one column, in one of many manners."""

    def __init__(self, body: str = "linear", end: str = "logits", output: str = "tensor", width: int = 6):
        super().__init__()
        self.end, self.output, self.body = end, output, body
        layers = {
            "linear": lambda: [nn.Flatten(), nn.Linear(32, width)],
            "batchnorm": lambda: [nn.Flatten(), nn.Linear(32, width), nn.BatchNorm1d(width), nn.Dropout(0.5)],
            "convolution": lambda: [
                nn.Conv2d(2, 3, 3),
                nn.BatchNorm2d(3),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(12, width),
            ],
            "grouped": lambda: [
                nn.Conv2d(2, 4, 3, groups=2),
                nn.GroupNorm(2, 4),
                nn.Flatten(),
                nn.Linear(16, width),
            ],
            "pooled": lambda: [
                nn.Conv2d(2, width, 1),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout1d(0.5),
            ],
            "tied": lambda: [nn.Flatten(), *[nn.Linear(32, 32)] * 2, nn.Linear(32, width)],
            "attention": lambda: [
                nn.Flatten(2),
                nn.TransformerEncoderLayer(16, 2, 8, batch_first=True),
                nn.Flatten(),
                nn.Linear(32, width),
            ],
        }
        self.layers = nn.Sequential(*layers[body]())
        self.head = nn.Linear(width, 1 if end in ("margin", "sigmoid") else 5)
        self.register_buffer("scale", torch.tensor(4.1), persistent=False)
        self.register_buffer("shift", torch.tensor(0.3))

    def forward(self, x):
        z = self.head(self.layers(x)) * self.scale + self.shift
        ends = {
            "softmax": lambda z: F.softmax(z, -1),
            "named": lambda z: z.softmax(1)[:, :],
            "log": lambda z: z.log_softmax(-1),
        }
        z = (ends | {"logits": lambda z: z, "margin": lambda z: z, "sigmoid": torch.sigmoid})[self.end](z)
        if self.output == "dict":
            return {"hidden": x, "logits": z}
        if self.output == "tuple":
            return (z,)
        return type("Output", (), {"logits": z})() if self.output == "attribute" else z


WRAPPERS = {
    "none": lambda m: m,
    "parallel": nn.DataParallel,
    "compiled": functools.partial(torch.compile, backend="eager"),
    "averaged": AveragedModel,
    "nested": lambda m: nn.DataParallel(torch.compile(AveragedModel(m), backend="eager")),
}

drawn = st.fixed_dictionaries(
    {
        "body": st.sampled_from(
            ["linear", "batchnorm", "convolution", "grouped", "pooled", "tied", "attention"]
        ),
        "end": st.sampled_from(["logits", "softmax", "named", "log", "margin", "sigmoid"]),
        "output": st.sampled_from(["tensor", "dict", "tuple", "attribute"]),
        "wrapper": st.sampled_from(list(WRAPPERS)),
        "dtype": st.sampled_from(list(DTYPES)),
        "train": st.booleans(),
        "rows": st.integers(1, 19),
        "batch_size": st.sampled_from([1, 3, 8, 1024]),
        "seed": st.integers(0, 99),
    }
)


def check(body, end, output, wrapper, dtype, train, rows, batch_size, seed):
    torch.manual_seed(seed)
    kind, tolerance = DTYPES[dtype]
    module = Odd(body, end, output)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    module = module.to(kind).train(train)
    x = np.random.default_rng(seed).normal(size=(rows, 2, 4, 4)).astype(np.float32)
    with torch.no_grad():
        own = module.eval()(torch.from_numpy(x).to(kind))
        module.train(train)
    own = own["logits"] if output == "dict" else own[0] if output == "tuple" else getattr(own, "logits", own)
    own = own.double().numpy()
    one = own[:, :1] if end == "sigmoid" else 1 / (1 + np.exp(-own[:, :1]))
    expected = (
        np.hstack([1 - one, one])
        if end in ("margin", "sigmoid")
        else own
        if end in ("softmax", "named")
        else softmax(own, -1)
    )
    stated = {"margin": "margin", "sigmoid": "probabilities"}.get(end, "auto")
    options = {
        "batch_size": batch_size,
        "output": stated,
        "factory": functools.partial(Odd, body=body, end=end, output=output),
    }
    member = TorchMember(WRAPPERS[wrapper](module), **options)
    bare = TorchMember(member.module, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = member.predict_logits(x)
        assert member.fingerprint() == bare.fingerprint()
        with tempfile.TemporaryDirectory() as folder:
            member.save(folder)
            loaded = load_member(folder, trusted=[f"{Odd.__module__}.Odd"])
    np.testing.assert_allclose(softmax(logits.astype(np.float64), -1), expected, atol=tolerance)
    np.testing.assert_array_equal(loaded.predict_logits(x), logits)
    np.testing.assert_array_equal(bare.predict_logits(x), logits)
    assert loaded.fingerprint() == member.fingerprint()
    assert (loaded.bytes, loaded.parameters) == (member.bytes, member.parameters)
    assert {m.training for m in member.module.modules()} == {train}


@settings(max_examples=25, **PROPERTY)
@given(drawn)
def test_odd_modules_predict_as_they_do_themselves(case):
    check(**case)


@pytest.mark.slow
@settings(max_examples=500, **PROPERTY)
@given(drawn)
def test_many_odd_modules_predict_as_they_do_themselves(case):
    check(**case)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.5,
}
TEXT = {"vocab_size": 40, "max_position_embeddings": 40, **SMALL}
FAMILIES = {
    "Bert": {**TEXT, "pad_token_id": 3},
    "Roberta": {**TEXT, "pad_token_id": 1},
    "Electra": {**TEXT, "embedding_size": 16, "pad_token_id": 0},
    "Albert": {**TEXT, "embedding_size": 8, "pad_token_id": 0},
    "DebertaV2": {
        **TEXT,
        "pad_token_id": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
    },
    "DistilBert": {
        "vocab_size": 40,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 24,
        "initializer_range": 0.5,
        "pad_token_id": 0,
    },
    "ModernBert": {
        **TEXT,
        "pad_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 4,
        "bos_token_id": 1,
        "eos_token_id": 4,
    },
    "Llama": {**TEXT, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4},
    "GPT2": {
        "vocab_size": 40,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
    },
    "ViT": {**SMALL, "image_size": 8, "patch_size": 4},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}

families = st.fixed_dictionaries(
    {
        "family": st.sampled_from(list(FAMILIES)),
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
        "named": st.booleans(),
        "wrapper": st.sampled_from(["none", "parallel", "averaged", "compiled"]),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "batch_size": st.sampled_from([2, 1024]),
        "seed": st.integers(0, 9),
    }
)


def check_family(family, dtype, named, wrapper, attention, batch_size, seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    names = {0: "no", 1: "maybe", 2: "yes"}
    labels = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if named else {"num_labels": 3}
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **labels)
    if family != "ResNet":
        config._attn_implementation = attention if family not in ("DebertaV2",) else "eager"
    images = family in ("ViT", "ResNet")
    model = (
        getattr(transformers, f"{family}For{'Image' if images else 'Sequence'}Classification")(config)
        .to(DTYPES[dtype][0])
        .train()
    )
    rng = np.random.default_rng(seed)
    if images:
        x = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    else:
        x = rng.integers(5, 40, (5, 7))
        x[1, 4:] = x[3, 2:] = config.pad_token_id
    with torch.no_grad():
        given = torch.from_numpy(x)
        more = {} if images else {"attention_mask": (given != config.pad_token_id).long()}
        expected = (
            model.eval()(given.to(DTYPES[dtype][0]) if images else given, **more).logits.double().numpy()
        )
        model.train()
    member = TorchMember(WRAPPERS[wrapper](model), name="hf", batch_size=batch_size)
    logits = member.predict_logits(x)
    tolerance = max(DTYPES[dtype][1], 1e-4)
    np.testing.assert_allclose(softmax(logits.astype(np.float64), -1), softmax(expected, -1), atol=tolerance)
    assert member.classes == (("no", "maybe", "yes") if named else None)
    with tempfile.TemporaryDirectory() as folder:
        member.save(folder)
        loaded = load_member(folder)
    assert (loaded.fingerprint(), loaded.classes) == (member.fingerprint(), member.classes)
    # A loaded model has the library's default implementation of attention, which adds up in another order.
    np.testing.assert_allclose(
        softmax(loaded.predict_logits(x).astype(np.float64), -1), softmax(expected, -1), atol=tolerance
    )
    if attention == "sdpa":
        np.testing.assert_array_equal(loaded.predict_logits(x), logits)


@settings(max_examples=22, **PROPERTY)
@given(families)
def test_hugging_face_models_predict_as_they_do_themselves(case):
    check_family(**case)


@pytest.mark.slow
@settings(max_examples=250, **PROPERTY)
@given(families)
def test_many_hugging_face_models_predict_as_they_do_themselves(case):
    check_family(**case)
