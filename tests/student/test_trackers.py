"""Each tracker in a real training: the metrics are read back by the tool's own files or functions. Skipped where
the package is missing."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.models import MLP
from ensdistill.student import Validation

ROWS = Rows(
    np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60), np.arange(60) % 3
)
STEPS = 150
NAMES = ["mlflow", "tensorboard", "trackio", "wandb"]


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.manual_seed(0)
    member = nn.Linear(6, 3).requires_grad_(False)
    return cache_targets(Ensemble.from_members([member]), ROWS, tmp_path_factory.mktemp("trackers") / "cache")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """All tools write below one folder, which some read from the environment once, and none looks for a server."""
    place = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DIR", str(place))
        patch.setenv("TRACKIO_DIR", str(place))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        patch.chdir(place)  # MLflow's artefacts
        yield place


def train(cache, trackers, folder, stop_after=None):
    def progress(done, total):
        if done == stop_after:
            raise Stop

    optimization = Optimization(steps=STEPS, batch_size=24, learning_rate=0.05, schedule="cosine")
    return StudentTrainer(optimization, trackers=trackers).distill(
        partial(MLP, 6, [4], 3),
        ROWS,
        cache,
        validation=Validation(rows=0.2, every=64),
        folder=folder,
        checkpoint_every=64,
        progress=progress,
    )


def of_tensorboard(places: Path, folder: Path) -> list[dict[str, list]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "ensdistill"))
    events.Reload()
    return [{tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}]


def of_mlflow(places: Path, folder: Path) -> list[dict[str, list]]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    found = []
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        if not run.info.run_name.endswith(folder.name):
            continue
        assert run.data.params["optimization.steps"] == str(STEPS)
        metrics = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found.append({name: [(m.step, m.value) for m in history] for name, history in metrics.items()})
    return found


def statuses(folder: Path) -> list[str]:
    """Of MLflow's runs of a training."""
    client = pytest.importorskip("mlflow").MlflowClient()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [run.info.status for run in runs if run.info.run_name.endswith(folder.name)]


def of_trackio(places: Path, folder: Path) -> list[dict[str, list]]:
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    found = []
    for name in storage.get_runs("ensdistill"):
        if name.endswith(folder.name):
            assert storage.get_run_config("ensdistill", name)["optimization.steps"] == STEPS
            found.append(by_name(storage.get_logs("ensdistill", name), "step"))
    return found


def of_wandb(places: Path, folder: Path) -> list[dict[str, list]]:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    runs: dict[str, list] = {}
    for file in sorted((places / "wandb").glob("offline-run-*/*.wandb")):
        mine = False
        for blob in blobs_of(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(blob)
            if record.HasField("run"):
                mine = mine or record.run.display_name.endswith(folder.name)
            if record.HasField("history") and mine:
                items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                runs.setdefault(file.stem, []).append({k: json.loads(v) for k, v in items.items()})
    return [by_name(lines, "_step") for lines in runs.values()]


def exits(places: Path) -> list[int]:
    """The exit codes of W&B's runs, in the order of time."""
    pb, found = pytest.importorskip("wandb.proto.wandb_internal_pb2"), []
    for file in sorted(
        (places / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime
    ):
        for blob in blobs_of(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(blob)
            found += [record.exit.exit_code] if record.HasField("exit") else []
    return found


def by_name(lines: list[dict], step: str) -> dict[str, list]:
    """From lines of values to {name: [(step, value)]}."""
    found: dict[str, list] = {}
    for line in lines:
        for name, value in line.items():
            found.setdefault(name, []).append((line[step], value))
    return found


def blobs_of(data: bytes) -> list[bytes]:
    """The records of a log of LevelDB's format after a header of seven bytes: parts with a checksum, a length and a
    kind (whole, first, middle, last) in blocks of 32 768 bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


READ: dict[str, Callable[[Path, Path], list[dict[str, list]]]] = {
    "mlflow": of_mlflow,
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
    "wandb": of_wandb,
}


def expected(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return losses, [(n["step"], n["evaluation"]["student"]["kl"]) for n in lines if "evaluation" in n]


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_training_goes_on_with_the_same_run(cache, places, name):
    pytest.importorskip(name)
    folder = places / f"only-{name}"
    with pytest.raises(Stop):
        train(cache, [name], folder, stop_after=96)  # the last checkpoint is that of step 64
    if name == "mlflow":
        assert statuses(folder) == ["FAILED"]
    train(cache, [name], folder)
    (found,) = READ[name](places, folder)
    losses, scores = expected(folder)
    assert [step for step, _ in losses] == [32, 64, 96, 128, 150]
    assert [step for step, _ in found["loss"]] == [step for step, _ in losses]
    np.testing.assert_allclose([v for _, v in found["loss"]], [v for _, v in losses], rtol=1e-6)
    if name == "mlflow":
        assert statuses(folder) == ["FINISHED"]
    if name == "wandb":
        assert exits(places) == [1, 0]
    np.testing.assert_allclose([v for _, v in found["student/kl"]], [v for _, v in scores], rtol=1e-6)


def test_all_trackers_together(cache, places):
    for name in NAMES:
        pytest.importorskip(name)
    folder = places / "together"
    train(cache, NAMES, folder)
    for name in NAMES:
        (found,) = READ[name](places, folder)
        np.testing.assert_allclose(found["loss"], expected(folder)[0], rtol=1e-6)
    for file in folder.glob("checkpoint*"):
        file.unlink()
    train(cache, ["mlflow"], folder)  # anew: a run of its own
    assert len(of_mlflow(places, folder)) == 2


def test_a_tracker_that_writes_files_needs_a_folder(cache):
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match=r"^trackers: 'tensorboard' writes files; pass folder="):
        StudentTrainer(Optimization(steps=1, batch_size=4), trackers=["tensorboard"]).distill(
            partial(MLP, 6, [4], 3), ROWS, cache
        )
