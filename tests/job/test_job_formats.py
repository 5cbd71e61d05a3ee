"""Whole jobs on data in the formats that users keep them in."""

from __future__ import annotations

import json

import numpy as np
import pytest
from job_helpers import run, succeed, write_job

ROWS = 150
INPUTS = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
LABELS = np.where(INPUTS[:, 0] > 0, "hot", "cold")
NET = {"model": "MLP", "optimization": {"steps": 60, "batch_size": 32, "learning_rate": 0.02}}


def job(tmp_path, class_path, **settings):
    members = [{"class_path": "TorchMembers", "init_args": {**NET, "count": 1, "name": "net"}}]
    return write_job(
        tmp_path,
        {
            "data": {"class_path": class_path, "init_args": settings},
            "teachers.members": members,
            "cache.transfer.synthetic": [],
            "distill.students": {"small": NET},
        },
    )


def write_npz(folder):
    np.savez_compressed(folder / "both.npz", x=INPUTS, y=LABELS)
    file = str(folder / "both.npz")
    return "ArrayDataset", {
        "inputs": file, "inputs_name": "x", "labels": file, "labels_name": "y", "labelled": 80, "pool": 30
    }  # fmt: skip


def write_json_lines(folder):
    rows = [
        {"a": float(x[0]), "b": None if i % 9 == 0 else float(x[1]), "city": ["Rome", "Oslo"][i % 2]}
        | ({} if i % 5 == 0 else {"kind": str(label)})  # a row without the key has no label
        for i, (x, label) in enumerate(zip(INPUTS, LABELS, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "Table", {"path": str(folder / "rows.jsonl"), "target": "kind"}


def write_hugging_face(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "x": datasets.Sequence(datasets.Value("float32")),
            "kind": datasets.ClassLabel(names=["cold", "hot"]),
        }
    )
    given = datasets.Dataset.from_dict({"x": INPUTS, "kind": LABELS}, features=features)
    parts = {"train": given.select(range(90)), "test": given.select(range(90, 150))}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return "Items", {"dataset": str(folder / "saved"), "label": "kind"}


LONG = [pytest.param(write, marks=pytest.mark.slow) for write in (write_json_lines, write_hugging_face)]


@pytest.mark.parametrize("write", [write_npz, *LONG])
def test_a_job_runs_on_data_of_this_format(write, tmp_path):
    class_path, settings = write(tmp_path)
    file = job(tmp_path, class_path, **settings)
    succeed("run", file)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["models"]["ensemble"]["accuracy"]["mean"] > 0.8
    assert report["students"]["small"]["models"]["student"]["accuracy"]["mean"] > 0.8
    status, out, _ = run("run", file)
    assert status == 0
    assert "(unchanged)" in out.replace("\n", "")
