"""Caches of several tasks side by side: stale ones, copies, versions, drafts, the command line, manifests."""

import json
import shutil
import threading
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from cache_helpers import contents, digits, rewrite
from job_helpers import run, succeed
from task_helpers import SMALL, Labellers, Regressors, labelled, measured, versions
from view_helpers import N

from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheMismatch,
    Codec,
    Encoded,
    TargetCache,
    cache_targets,
)
from ensdistill.cache.codecs import codec_of
from ensdistill.cache.draft import Draft
from ensdistill.cache.export import export_parquet
from ensdistill.cache.planned import plan_predictions
from ensdistill.cache.remote import upload
from ensdistill.common.tasks import TASKS
from ensdistill.data import Rows
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.versions import view_inputs
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember

MAKERS = {"classification": digits, "multilabel": labelled, "regression": measured}
OTHERS = ["multilabel", "regression"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A sound cache of each task; to be read only."""
    folder = tmp_path_factory.mktemp("tasks")
    return {task: cache_targets(*make(), folder / task, **SMALL) for task, make in MAKERS.items()}


def test_only_caches_of_other_tasks_have_a_new_version_of_the_format(caches):
    found = {
        task: (cache.manifest["format_version"], "task" in cache.manifest) for task, cache in caches.items()
    }
    assert found == {"classification": (3, False), "multilabel": (6, True), "regression": (6, True)}
    assert [repr(cache).count("task=") for cache in caches.values()] == [0, 1, 1]


@pytest.mark.parametrize("there", TASKS)
@pytest.mark.parametrize("unfinished", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_cache_of_another_task_is_refused_by_both_names(caches, tmp_path, there, unfinished):
    shutil.copytree(caches[there].path, tmp_path / "c")
    if unfinished:
        _unfinish(tmp_path / "c")
    before = contents(tmp_path / "c")
    for task in TASKS:
        if task != there:
            with pytest.raises(CacheMismatch, match=f"task: the cache has {there!r}, expected {task!r}"):
                cache_targets(*MAKERS[task](), tmp_path / "c", **SMALL)
    assert contents(tmp_path / "c") == before
    other = next(task for task in TASKS if task != there)
    assert cache_targets(*MAKERS[other](), tmp_path / "c", overwrite=True, **SMALL).task == other


def _unfinish(folder):
    """Take a finished cache's manifest away, and leave its plan."""
    manifest = TargetCache.open(folder).manifest
    plan = {field: value for field, value in manifest.items() if field not in ("shards", "statistics")}
    from ensdistill.cache.files.checked import write_checked

    write_checked(folder / "plan.json", plan)
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("task", OTHERS)
def test_stale_caches_are_named(tmp_path, task):
    teachers, rows = MAKERS[task]()
    cache = cache_targets(teachers, rows, tmp_path / "c", **SMALL)
    assert contents(cache.path) == contents(cache_targets(teachers, rows, tmp_path / "c", **SMALL).path)
    with pytest.raises(
        CacheMismatch, match=r"fingerprint.ensemble.members\S+: .*differ|members.*the cache has"
    ):
        cache_targets(versions(teachers), rows, tmp_path / "c", **SMALL)
    moved = replace(
        rows,
        inputs=rows.inputs
        + np.float32([[0], [1]])[np.arange(230) % 2] * (np.arange(rows.inputs.shape[1]) > 0),
    )
    with pytest.raises(CacheMismatch, match=r"fingerprint\.inputs\.hash"):
        cache_targets(teachers, moved.take(np.arange(230)), tmp_path / "c", **SMALL)
    with pytest.raises(CacheMismatch, match="rows: the cache has 230, expected 200"):
        cache_targets(teachers, rows.take(np.argsort(rows.uids)[:200]), tmp_path / "c", **SMALL)
    with pytest.raises(CacheMismatch, match="codec"):
        cache_targets(teachers, rows, tmp_path / "c", **{**SMALL, "codec": "fp16"})
    with pytest.raises(CacheMismatch, match=r"temperature: the cache has 'any', expected 1\.0"):
        cache_targets(teachers, rows, tmp_path / "c", mixture_at=1.0, **SMALL)
    changed = {"logits": 3 * teachers.logits} if task == "multilabel" else {"mean": teachers.mean * 1.01}
    with pytest.raises(CacheMismatch, match="differs from that of the ensemble's present"):
        cache.verify_against(replace(teachers, **changed), rows, share=1.0)
    cache.verify_inputs(rows.uids, rows.inputs)


def test_an_ensemble_of_another_task_is_refused(caches):
    for task, cache in caches.items():
        other = "multilabel" if task != "multilabel" else "regression"
        with pytest.raises(CacheMismatch, match=f"is of the task {task}; got one of {other}"):
            cache.verify_against(*MAKERS[other](), share=1.0)
    logits, rows = digits()[0].logits, digits()[1]
    members = [ArrayMember(logits=logits[0], name="a", uids=rows.uids)]
    with pytest.raises(CacheMismatch, match="of the task multilabel; got an ensemble of classification"):
        Ensemble.from_members(members).calibrate(caches["multilabel"], rows.labels, uids=rows.uids)
    with pytest.raises(CacheError, match="is a cache of regression, which has no logits: use gather"):
        caches["regression"].gather_logits(rows.uids)
    with pytest.raises(CacheError, match="is a cache of multilabel, which has no moments: use gather_logits"):
        caches["multilabel"].gather_moments(rows.uids)


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHERS)
def test_several_writers_write_the_same_cache(tmp_path, task, caches):
    def write(rank):
        cache_targets(*MAKERS[task](), tmp_path / "c", rank=rank, world=3, **SMALL)

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "c") == contents(caches[task].path)


@pytest.mark.parametrize("task", OTHERS)
def test_caches_at_a_url(tmp_path, task, caches):
    fsspec.filesystem("memory").store.clear()
    upload(caches[task].path, f"memory://{task}")
    copy = TargetCache.open(f"memory://{task}", local=tmp_path / "copy", fetch="as_read")
    one, other = (cache.gather(np.arange(100)) for cache in (copy, caches[task]))
    for name, part in vars(one).items():
        assert torch.equal(part, getattr(other, name)) if isinstance(part, torch.Tensor) else True
    with pytest.raises(CacheMismatch, match=rf"task: the cache has {task!r}, expected 'classification'"):
        upload(caches["classification"].path, f"memory://{task}")


@pytest.mark.parametrize("task", [pytest.param("multilabel", marks=pytest.mark.slow), "regression"])
def test_each_version_of_a_sample_has_targets_of_its_own(tmp_path, task):
    matrix = np.random.default_rng(0).integers(-3, 4, (64, 10)).astype(np.float32)
    pixels = (digits(N)[1].inputs[:, 1:] / 16).reshape(N, 1, 8, 8)
    labels = labelled(N)[1].labels
    rows = Rows(pixels, digits(N)[1].uids, labels if task == "multilabel" else labels.astype(np.float64))

    class Seeing(Labellers if task == "multilabel" else Regressors):
        def predict_logits(self, inputs):
            return (inputs.reshape(len(inputs), 64) @ matrix)[None]

        def predict_moments(self, inputs):
            return self.predict_logits(inputs).astype(np.float64), None

    one = {"names": ("a",), "weights": np.ones(1), "classes": tuple("0123456789")}
    teachers, augment = Seeing(np.zeros(1), **one), ShiftImages(1)
    cache = cache_targets(
        teachers, rows, tmp_path, codec="fp32", views=3, augment=augment, seed=5, shard_rows=32
    )
    for view in range(3):
        seen = view_inputs(augment, pixels, rows.uids, view, 5)
        if task == "multilabel":
            assert np.array_equal(cache.gather_logits(rows.uids, view), teachers.predict_logits(seen))
        else:
            found = cache.gather_moments(rows.uids, view)[0]
            np.testing.assert_allclose(found, teachers.predict_logits(seen), atol=1e-4)
    assert cache.verify_against(teachers, rows, share=1.0, augment=augment) == N


@pytest.mark.parametrize("task", OTHERS)
def test_a_draft_becomes_the_same_cache(tmp_path, task, caches):
    teachers, rows = MAKERS[task]()

    def draft():
        planned = plan_predictions(
            teachers, rows, codec=codec_of("uint8" if task == "multilabel" else "fp32"), mixture_at=None, views=1, augment=None, lengths=None,
            max_temperature=10.0, seed=0, shard_rows=64,
        )  # fmt: skip
        return Draft(tmp_path / "c", planned, batch_size=50)

    order = np.random.default_rng(4).permutation(230)
    uids, places = np.sort(rows.uids), np.argsort(rows.uids)
    for part in np.array_split(order, 3):
        one = draft()  # another process goes on
        values = one.encoder.batch(
            one.planned.predict(rows.inputs[places[part]], uids[part]), 0, part, None
        ).logits
        hashes = caches[task].layout.views(caches[task].gather_records(uids[part]))["input_hash"]
        one.write(one.ids(part, 0 * part), values.numpy(), hashes)
        target, wanted = one.target(part, 0 * part), caches[task].gather(part)
        assert type(target) is type(wanted)
        assert torch.equal(_numbers(target), _numbers(wanted))
    assert one.complete
    one.publish()
    assert contents(tmp_path / "c") == contents(caches[task].path)


def _numbers(target):
    return target.mean if hasattr(target, "mean") else target.to_logits()


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("regression", lambda m: m.update(scale=[1.0]), "scale: expected 2 numbers"),
        ("regression", lambda m: m.update(scale=[1.0, 0.0]), "scale: expected a list of finite numbers above 0"),
        ("regression", lambda m: m.update(location=[1.0, None]), "location: expected a list of finite numbers"),
        ("regression", lambda m: m.update(variance=False), "record: expected the layout of its codec"),
        ("regression", lambda m: m.update(temperature=2.0), "temperature: expected 'any' or 1"),
        ("regression", lambda m: m.pop("scale"), "scale: .*missing"),
        ("regression", lambda m: m.update(codec="topk-3"), "codec: expected one of fp32, fp16, affine16, uint8"),
        ("regression", lambda m: m.update(task="multilabel"), r"unknown fields \['location', 'scale', 'variance'\]"),
        ("regression", lambda m: m["statistics"].update(kl=m["statistics"].pop("error")), "statistics: .*'error'"),
        ("regression", lambda m: m["fingerprint"].update(derived=[{"convert": {"from": "fp32", "kl": {"max": 0}}}]),
         "fingerprint: expected conversions with 'error'"),
        ("multilabel", lambda m: m.update(task="regression"), "location: .*missing"),
        ("multilabel", lambda m: m.update(task="ranking"), "task: expected one of"),
        ("multilabel", lambda m: m.update(codec="counts-3"), "codec: expected one of .*for multilabel; got counts-3"),
        ("multilabel", lambda m: m.update(format_version=3), r"unknown fields \['task'\]"),
        ("classification", lambda m: m.update(task="multilabel"), r"unknown fields \['task'\]"),
        ("classification", lambda m: m.update(codec="affine16"), "codec: expected one of uint8, .*got affine16"),
    ],
)  # fmt: skip
def test_manifests_that_do_not_fit_their_task_are_refused(caches, tmp_path, task, change, message):
    shutil.copytree(caches[task].path, tmp_path / "c")
    rewrite(tmp_path / "c", change)
    with pytest.raises(CacheCorrupt, match=message):
        TargetCache.open(tmp_path / "c")


class Halves(Codec):
    """Log-odds rounded to halves."""

    task = "multilabel"

    def fields(self, members, classes):
        return {"halves": ("<i2", (members, classes))}

    def encode(self, batch):
        return Encoded({"halves": (2 * batch.values).round().short().numpy().swapaxes(0, 1)})

    def decode(self, fields, classes):
        return fields["halves"].astype(np.float32) / 2


@pytest.mark.filterwarnings("ignore::ensdistill.cache.CacheLossWarning")
def test_a_codec_of_one_s_own_states_its_task(tmp_path):
    teachers, rows = labelled()
    for mixture_at in (None, 2.0):
        cache = cache_targets(
            teachers, rows, tmp_path / str(mixture_at), codec=Halves(), mixture_at=mixture_at
        )
        assert cache.verify_against(teachers, rows, share=1.0) == 230
    assert (
        np.abs(cache.gather(rows.uids).log_probs.exp().numpy() - teachers_mixture(teachers, 2.0)).max() < 0.07
    )
    for make in (digits, measured):
        with pytest.raises(ValueError, match=r"Halves, whose attribute task is multilabel"):
            cache_targets(*make(), tmp_path / "other", codec=Halves())


def teachers_mixture(teachers, temperature):
    return np.einsum("k,knc->nc", teachers.weights, 1 / (1 + np.exp(-teachers.logits / temperature)))


@pytest.mark.parametrize("task", OTHERS)
def test_the_command_line_shows_the_task(tmp_path, task, caches):
    cache = caches[task]
    shown = " ".join(succeed("cache", "info", cache.path).split())
    wanted = {
        "multilabel": ("task multilabel", "uint8: KL to the exact targets mean", "labels 0, 1, 2"),
        "regression": ("task regression", "fp32: error to the exact targets mean 0.0e+00", "of the spread",
                       "moments each member's means and variances", "numbers x (1"),
    }[task]  # fmt: skip
    assert all(words in shown for words in wanted), shown
    document = json.loads(succeed("cache", "info", cache.path, "--json"))
    assert document["task"] == task
    assert ("error" in document, "scale" in document) == (task == "regression",) * 2
    assert "230 samples read" in " ".join(succeed("cache", "verify", cache.path).split())
    codec = "fp16" if task == "regression" else "topk-5"
    status, out, err = run(
        "cache", "convert", cache.path, tmp_path / "c", "--codec", codec, "--mixture-at", "1"
    )
    assert status == 0, err
    assert ("max error" if task == "regression" else "max KL") in out
    status, _, err = run(
        "cache", "convert", cache.path, tmp_path / "d", "--codec", "counts-3", "--mixture-at", "1"
    )
    assert (status, f"which are for {task}; got counts-3" in " ".join(err.split())) == (2, True), err


def test_a_regressor_comes_by_the_command_line(tmp_path, caches):
    cache, words = caches["regression"], ["--name", "d", "--uids", "in-order", "--weight", "0.5"]
    mean, variance = (part[0] * 1.5 for part in cache.gather_moments(np.arange(230)))
    np.save(tmp_path / "m.npy", mean)
    np.save(tmp_path / "v.npy", variance)
    given = ["--means", tmp_path / "m.npy", "--variances", tmp_path / "v.npy"]
    succeed("cache", "add-member", cache.path, tmp_path / "four", *words, *given)
    four = TargetCache.open(tmp_path / "four")
    np.testing.assert_allclose(four.gather_moments(np.arange(230))[1][3], variance, rtol=1e-4)
    status, _, err = run(
        "cache", "add-member", cache.path, tmp_path / "x", *words, "--logits", tmp_path / "m.npy"
    )
    assert (
        status,
        "--means: expected a file, because the cache is of regression" in " ".join(err.split()),
    ) == (2, True)
    _, _, err = run("cache", "add-member", caches["multilabel"].path, tmp_path / "x", *words, *given)
    assert "--logits: expected a file, because the cache is of multilabel" in " ".join(err.split())


def test_tables_of_other_tasks_name_their_columns(tmp_path, caches):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_parquet(caches["regression"], tmp_path / "r.parquet")
    table = parquet.read_table(tmp_path / "r.parquet")
    mean, variance = caches["regression"].gather_moments(np.arange(230))
    assert np.array_equal(np.stack(table["mean: b"].to_numpy()), mean[1])
    assert np.array_equal(np.stack(table["variance: c"].to_numpy()), variance[2])
    teachers, rows = labelled()
    mixed = cache_targets(teachers, rows, tmp_path / "m", codec="fp32", mixture_at=1.0)
    export_parquet(mixed, tmp_path / "l.parquet")
    found = np.stack(parquet.read_table(tmp_path / "l.parquet")["log_odds"].to_numpy())
    assert np.array_equal(found, mixed.gather_logits(np.arange(230))[0])


def test_rows_with_labels_of_another_task_are_refused_before_a_member_predicts(tmp_path):
    teachers, rows = digits(N)
    other = Rows(rows.inputs, rows.uids, labelled(N)[1].labels)
    with pytest.raises(
        ValueError,
        match=r"rows\.labels: expected labels of the ensemble's task, classification, .*multilabel",
    ):
        cache_targets(teachers, other, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    unknown = Rows(rows.inputs, rows.uids, np.full((N, 10), -1, np.int8))
    assert len(cache_targets(teachers, unknown, tmp_path / "cache").uids) == N
