"""Wrong settings and wrong files of settings are refused before any work."""

from __future__ import annotations

import pytest
from job_helpers import mlp, run, write_job

SMALL, MEMBER = "distill.students.small", "teachers.members.0.init_args"


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        # A name that no setting has, at every depth; the nearest one is suggested.
        ({"sedes": 2}, [], "sedes: there is no such setting; known: data, teachers, cache, distill, name, "),
        ({"sedes": 2}, [], "max_test_copies, show_rows, ood, minutes, trials, refit. Did you mean 'seeds'?"),
        (
            {"distill.loss.temprature": 2},
            [],
            "distill.loss.temprature: there is no such setting; known: temperature, ",
        ),
        ({f"{SMALL}.optimisation": {"steps": 3}}, [], "Did you mean 'optimization'?"),
        ({f"{SMALL}.optimization.stepz": 2}, [], "Did you mean 'steps'?"),
        (
            {f"{SMALL}.model.init_args.hiden": [2]},
            [],
            f"{SMALL}.model.init_args.hiden: there is no such setting; known: inputs, hidden, outputs, "
            "dropout, activation.",
        ),
        # Also where its value is empty.
        ({"cahce": {}}, [], "cahce: there is no such setting; known: data, teachers, cache,"),
        ({"teachers.fold": {}}, [], "Did you mean 'folds'?"),
        ({"distill.lable_smoothing": {}}, [], "Did you mean 'label_smoothing'?"),
        ({f"{SMALL}.optimization.stepz": None}, [], f"{SMALL}.optimization.stepz: there is no such setting"),
        (
            {f"{MEMBER}.model.init_args.widht": {}},
            [],
            f"{MEMBER}.model.init_args.widht: there is no such setting; known: inputs, ",
        ),
        (
            {"data.labelled": 100},
            [],
            "data.labelled: there is no such setting; known: class_path, init_args, dict_kwargs.",
        ),
        ({f"{MEMBER}.cuont": 2}, [], "Did you mean 'count'?"),
        ({"data.init_args.labeled": 2}, [], "Did you mean 'labelled'?"),
        ({"cache.transfer.synthetic.0.init_args.row": 2}, [], "Did you mean 'rows'?"),
        (
            {},
            ["--distill.loss.temprature", "2"],
            "--distill.loss.temprature: there is no such setting; known: temperature, alpha,",
        ),
        ({}, ["--distill.loss.temprature=2"], "Did you mean '--distill.loss.temperature'?"),
        ({}, ["--sedes", "2"], "Did you mean '--seeds'?"),
        ({}, ["--keep", "0.9"], "It is a student's: distill.students.NAME.keep"),
        ({}, ["--distil.temperature", "2"], "Did you mean '--distill'?"),
        ({}, ["--data.labeled", "30"], "Did you mean '--data.init_args.labelled'?"),
        ({"sedes": 2}, ["--print_config"], "Did you mean 'seeds'?"),
        ({}, [f"--{SMALL}.optimization.stepz", "2"], f"Did you mean '--{SMALL}.optimization.steps'?"),
        (
            {},
            ["--print_config=bogus"],
            "--print_config: expected no value; got 'bogus'",
        ),
        # A class that can't be imported, or is something else.
        (
            {f"{SMALL}.model.class_path": "ensdistill.models.MPL"},
            [],
            f"{SMALL}.model.class_path: ensdistill.models has no 'MPL'.",
        ),
        ({f"{SMALL}.model.class_path": "ensdistill.models.MPL"}, [], "Did you mean 'MLP'?"),
        ({f"{SMALL}.model.class_path": "nowhere.Net"}, [], "No module named 'nowhere'"),
        (
            {f"{SMALL}.model": {"class_path": "ensdistill.data.Digits"}},
            [],
            f"{SMALL}.model.class_path: ensdistill.data.Digits is no Module",
        ),
        (
            {"distill.students.wide.model.class_path": "ensdistill.models.MPL"},
            [],
            "students.wide.model.class_path: ensdistill.models has no 'MPL'.",
        ),
        (
            {},
            ["--distill.students.other.model.hidden", "[32]"],
            "distill.students.other.model: expected a class_path, because no class is named here; got hidden alone",
        ),
        (
            {f"{SMALL}.model": "MLP3"},
            [],
            f"{SMALL}.model: expected an import path, package.module.Class; got 'MLP3'. Did you mean 'MLP'?",
        ),
        (
            {f"{SMALL}.model.class_path": 3},
            [],
            f"{SMALL}.model.class_path: expected an import path, package.module.Class; got 3",
        ),
        (
            {"data": {"class_path": "ensdistill.data.ArrayDataset"}},
            [],
            "data.init_args.labelled: expected a value, because it has no default; got nothing",
        ),
        (
            {"distill.augment": {"class_path": "ensdistill.data.Digits"}},
            [],
            "distill.augment.class_path: ensdistill.data.Digits is no Augmentation: expected a class with "
            "def draw(",
        ),
        ({"data.class_path": "ensdistill.data.Digit"}, [], "Did you mean 'Digits'?"),
        (
            {"data": {"class_path": "ensdistill.models.MLP"}},
            [],
            "data.class_path: ensdistill.models.MLP is no Dataset: expected a class with def split(self, "
            "seed: int) -> Split",
        ),
        (
            {"data": {"class_path": "Partition"}},
            [],
            "data.class_path: Partition is no Dataset: expected a class",
        ),
        (
            {"teachers.members.1.init_args.estimator.class_path": "sklearn.naive_bayes.GausianNB"},
            [],
            "Did you mean 'GaussianNB'?",
        ),
        # Text that names no preprocess.
        (
            {f"{SMALL}.preprocess": "autoo"},
            [],
            f"{SMALL}.preprocess: expected auto, null, a class_path with init_args, a function's import path "
            "(package.module.function), or the path of a tokenizer or of a saved preprocess that exists; got "
            "'autoo'. Did you mean 'auto'?",
        ),
        ({f"{MEMBER}.preprocess": "autoo"}, [], f"{MEMBER}.preprocess: expected auto, null, a class_path"),
        (
            {"teachers.members.1.init_args.preprocess": "Auto"},
            [],
            "teachers.members.1.init_args.preprocess: expected auto, null,",
        ),
        ({f"{MEMBER}.preprocess": "Auto"}, [], "Did you mean 'auto'?"),
        ({}, [f"--{SMALL}.preprocess", "None"], "got 'None'. Did you mean 'null'?"),
        ({f"{SMALL}.preprocess": "TableDefault"}, [], "Did you mean 'class_path: TableDefaults'?"),
        ({f"{SMALL}.preprocess": "numpy.sqare"}, [], "Did you mean numpy.square?"),
        (
            {f"{SMALL}.preprocess": "tokenizer.json"},
            [],
            "No module named 'tokenizer'); there is no file of this name either",
        ),
        ({f"{SMALL}.preprocess": "my/tokenizer"}, [], "of a tokenizer or of a saved preprocess that exists"),
        ({f"{SMALL}.preprocess": 3}, [], f"{SMALL}.preprocess: expected a Preprocess"),
        # Values of another kind, or out of range.
        ({"seeds": "two"}, [], "seeds: expected a whole number; got 'two'"),
        ({"seeds": None}, [], "seeds: expected a whole number; got nothing"),
        ({"teachers": 3}, [], "teachers: expected a mapping of names to values; got 3"),
        ({"teachers.members": {"a": 1}}, [], "teachers.members: expected a list; got {'a': 1}"),
        ({"cache.transfer.pool": "maybe"}, [], "cache.transfer.pool: expected true or false; got 'maybe'"),
        (
            {f"{MEMBER}.optimization": 3},
            [],
            f"{MEMBER}.optimization: expected a mapping of names to values; got 3",
        ),
        (
            {"distill.students.wide.optimization.schedule": "cosin"},
            [],
            "schedule: expected one of one_cycle, cosine, constant; got 'cosin'. Did you mean 'cosine'?",
        ),
        ({"distill.loss.temperature": "hot"}, [], "distill.loss.temperature: expected a number; got 'hot'"),
        (
            {"distill.loss.temperature": 0},
            [],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got 0.0",
        ),
        (
            {},
            ["--distill.loss.temperature", "-1"],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got -1.0",
        ),
        (
            {},
            ["--distill.loss.temperature", "nan"],
            "--distill.loss.temperature: expected a number; got 'nan'",
        ),
        (
            {"distill.loss.temperature": float("nan")},
            [],
            "distill.loss.temperature: expected a number from 0.0001 to 10000; got nan",
        ),
        ({"distill.loss.alpha": 1.5}, [], "distill.loss.alpha: expected a number from 0 to 1; got 1.5"),
        ({}, ["--distill.loss.alpha=-0.5"], "distill.loss.alpha: expected a number from 0 to 1; got -0.5"),
        (
            {"cache.codec": "uint9"},
            [],
            "cache.codec: expected one of uint8, fp16, bf16, fp32, topk-N, topk4-N, topk5-N, topk6-N, topk8-N, "
            "counts-N, draws-N (N a number, for counts "
            "at",
        ),
        ({"distill.loss.divergence": "kl"}, [], "distill.loss.divergence: expected"),
        (
            {"distill.loss.reduction": "sum"},
            [],
            "distill.loss.reduction: expected 'mean', the only one that a trainer has; got 'sum'",
        ),
        (
            {"distill.temperature": 2},
            [],
            "distill.temperature: there is no such setting; known: students, loss, ",
        ),
        (
            {"cache.codec": "topk-3"},
            [],
            "cache.mixture_at: expected a temperature, that of distill.loss.temperature, because codec "
            "topk-3",
        ),
        ({"cache.mixture_at": 0}, [], "cache.mixture_at: expected a number from 0.0001 to 10000; got 0.0"),
        (
            {"cache.mixture_at": 2},
            [],
            "cache.mixture_at: expected distill.loss.temperature, 1.0, because a mixture at one temperature",
        ),
        (
            {"cache.mixture_at": 1},
            ["--distill.loss.temperature", "3"],
            "cache.mixture_at: expected distill.loss.temperature, 3.0, because",
        ),
        (
            {"cache.mixture_at": 1},
            ["--distill.loss.combiner", "logit"],
            "distill.loss.combiner: expected teachers.combiner, prob, because cache.mixture_at keeps",
        ),
        ({"cache.views": 0}, [], "cache.views: expected at least 1; got 0"),
        (
            {"cache.views": 2, "cache.transfer.synthetic": []},
            [],
            "cache.transfer.synthetic: expected a source of rows that are made anew, or else an augmentation, "
            "because several views without either would all be alike; got none",
        ),
        (
            {"cache.views": 2, "cache.labelled": "mixed"},
            [],
            "cache.labelled: expected in_sample with several views of synthetic rows, because other targets",
        ),
        (
            {
                "cache.views": 2,
                "cache.transfer.synthetic": [{"class_path": "Diversity", "init_args": {"rows": 5}}],
            },
            [],
            "cache.transfer.synthetic.0 (Diversity): expected a source that makes rows without the ensemble",
        ),
        (
            {"cache.augment": {"class_path": "ensdistill.data.Digits"}},
            [],
            "cache.augment.class_path: ensdistill.data.Digits is no Augmentation: expected a class with ",
        ),
        ({"cache.max_kl": -1}, [], "cache.max_kl: expected a finite number of at least 0, in nats; got -1.0"),
        ({"cache.max_kl": "little"}, [], "cache.max_kl: expected a number; got 'little'"),
        (
            {"cache.view": 2},
            [],
            "cache.view: there is no such setting; known: transfer, codec, mixture_at, views, augment, "
            "max_kl, labelled, label_share, max_error.",
        ),
        ({"distill.students": {}}, [], "distill.students: expected at least one; got none"),
        (
            {"distill.students": {"../small": {"model": mlp(8)}}},
            [],
            "distill.students: expected a name that can be a folder's; got '../",
        ),
        (
            {f"{SMALL}.direct": {"steps": 20, "batch_size": 32}},
            [],
            "direct.steps: expected the student's, 30, for a fair comparison;",
        ),
        (
            {f"{SMALL}.optimization.learning_rate": -1},
            [],
            f"{SMALL}.optimization.learning_rate: expected a positive number, or auto; got -1",
        ),
        (
            {},
            [f"--{SMALL}.optimization.steps", "0"],
            f"{SMALL}.optimization.steps: expected at least 1, or auto; got 0",
        ),
        (
            {f"{MEMBER}.optimization.steps": 0},
            [],
            f"{MEMBER}.optimization.steps: expected at least 1, or auto; got 0",
        ),
        ({"cache.transfer.synthetic.0.init_args.rows": 0}, [], "mixup: rows: expected at least 1; got 0"),
        ({"teachers.members": []}, [], "teachers.members: expected at least one; got none"),
        ({"name": "a/b"}, [], "name: expected a name that can be a folder's; got 'a/b'"),
        ({"folder": 3}, [], "folder: expected a path; got 3"),
        (
            {f"{SMALL}.model.init_args.hidden": 8},
            [],
            f"{SMALL}.model.init_args.hidden: expected a list; got 8",
        ),
        (
            {f"{SMALL}.model.init_args.hidden": "8"},
            [],
            f"{SMALL}.model.init_args.hidden: expected a list; got '8'",
        ),
        ({"distill.students": {3: {}}}, [], "distill.students.3: expected text; got 3"),
        (
            {},
            ["--distill.mixed_precision", "maybe"],
            "distill.mixed_precision: expected one of no, bf16, fp16; got 'maybe'",
        ),
        ({"seeds": "3"}, [], "seeds: expected a whole number; got '3'"),  # text in the file stays text
        ({"seeds": 2.0}, [], "seeds: expected a whole number; got 2.0"),
        ({"seeds": True}, [], "seeds: expected a whole number; got True"),
        ({"name": 3}, [], "name: expected text; got 3"),
        (
            {f"{SMALL}.model.init_args.hidden": [8, "x"]},
            [],
            f"{SMALL}.model.init_args.hidden.1: expected a whole number; got 'x'",
        ),
        (
            {"seeds": "two", "workers": "x"},
            [],
            "seeds: expected a whole number; got 'two'\nworkers: expected a whole number; got 'x'",
        ),
        ({}, ["x.yaml"], "CONFIG: expected --SETTING VALUE; got 'x.yaml'"),
        ({}, ["--distill.loss", "[1,"], "--distill.loss, line 1, column 4: not YAML"),
        ({}, ["--seeds", "0"], "seeds: expected at least 1; got 0"),
        ({}, ["--seeds"], "--seeds: expected a value, --seeds VALUE; got nothing."),
        ({}, ["--print_confg"], "got nothing. Did you mean '--print_config'?"),
    ],
)
def test_wrong_settings(tmp_path, change, words, message):
    status, out, err = run("run", write_job(tmp_path, change), *words)
    assert (status, out) == (2, "")
    assert message in err
    assert not any(inside in err for inside in ("Traceback", "<class", "Namespace(", "typing.", "Parser key"))
    assert not (tmp_path / "runs").exists()


def test_all_wrong_settings_are_reported_at_once(tmp_path):
    change = {
        "sedes": 2,
        "wokers": 1,
        "name": 3,
        "data.init_args.labeled": 2,
        "data.init_args.pool": "x",
        "data.arguments": {},
        "cache.views": 0,
        "cache.transfer.pol": True,
        "distill.loss.temprature": 2,
        "distill.loss.alpha": "x",
        f"{SMALL}.model.class_path": "ensdistill.models.MPL",
        f"{SMALL}.optimization.steps": 0,
        f"{MEMBER}.cuont": 2,
    }
    status, _, err = run("run", write_job(tmp_path, change), "--seeds", "two", "--thread", "2")
    assert status == 2
    expected = {"--seeds", "--thread"} | {
        path.replace("cache.views", "cache.transfer.pol") for path in change
    }
    lines = err.removeprefix("ensdistill: ").splitlines()[:-1]
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: [1,\n b: 2",
            "bad.yaml, line 2, column 6: not YAML (expected ',' or ']', but got '<stream end>')",
        ),
        (
            "- 1\n",
            "bad.yaml: expected settings (data, teachers, distill, ...), each `name: value`; got a list",
        ),
        ("", "bad.yaml: expected settings (data, teachers, distill, ...), each `name: value`; got nothing"),
        ("a: \0", "bad.yaml: not YAML (unacceptable character #x0000"),
        (
            "seeds: 3\n",
            "data: expected a value, because it has no default; got nothing\nteachers.members: expected a "
            "value",
        ),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    status, _, err = run("run", tmp_path / "bad.yaml")
    assert status == 2
    assert message in err
