"""``ensdistill export``: files that answer as the student does, with figures and a model card beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_registry  # noqa: F401
import pandas as pd
import pytest
import yaml
from job_helpers import flat, run, succeed
from serving_helpers import frame, of_table

from ensdistill import load_student

LOADER = "torch.export.load"


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    """A finished run on a table with categories and gaps, with a pool."""
    folder = tmp_path_factory.mktemp("exported")
    table = frame(240, seed=1).assign(sold=lambda t: np.where(t.rooms > 4, "yes", "no"))
    table.to_csv(folder / "flats.csv", index=False)
    quick = {"steps": 40, "batch_size": 32, "learning_rate": 0.02}
    model = {"class_path": "MLP", "init_args": {"hidden": [8]}}
    settings = {
        "name": "flats",
        "folder": str(folder / "runs"),
        "seeds": 1,
        "data": {
            "class_path": "Table",
            "init_args": {
                "path": str(folder / "flats.csv"),
                "target": "sold",
                "parts": {"pool": 0.2, "test": 0.4},
            },
        },
        "teachers": {
            "folds": 2,
            "members": [
                {
                    "class_path": "TorchMembers",
                    "init_args": {"count": 2, "model": model, "optimization": quick},
                },
            ],
        },
        "distill": {"folds": 2, "students": {"mlp": {"model": model, "optimization": quick}}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    succeed("run", folder / "job.yaml")
    return folder / "runs" / "flats"


@pytest.fixture(scope="module")
def exported(table_run):
    out = {
        to: succeed("export", table_run, "--to", to, *more)
        for to, more in (("onnx", ["--int8"]), ("torch", []), ("safetensors", []))
    }
    return table_run / "export" / "mlp", out


def test_the_files_answer_as_the_student_does(exported, table_run):
    folder, _ = exported
    new, student = frame(50, seed=9), load_student(table_run)
    for name, trusted in (("student.onnx", ()), ("student.pt2", [LOADER]), ("student", ())):
        other = load_student(folder / name, trusted=trusted)
        np.testing.assert_allclose(other.predict_proba(new), student.predict_proba(new), atol=1e-5)
        assert other.predict(new).tolist() == student.predict(new).tolist()
        assert other.classes == ("no", "yes")
        assert other.samples == student.samples


def test_figures_and_card_stand_beside_the_files(exported, table_run):
    folder, out = exported
    report = json.loads((table_run / "report.json").read_text())
    expected = report["students"]["mlp"]["models"]["student"]
    places = {"onnx": "student.onnx.json", "torch": "student.pt2.json", "safetensors": "student/export.json"}
    for to, place in places.items():
        figures = json.loads((folder / place).read_text())
        trained, *files = figures["variants"]
        assert trained["accuracy"] == pytest.approx(expected["accuracy"]["mean"])
        assert trained["nll"] == pytest.approx(expected["nll"]["mean"], rel=1e-5)
        assert [one["name"] for one in files] == {
            "onnx": ["onnx", "onnx, int8"],
            "torch": ["torch"],
        }.get(to, ["safetensors"])
        assert files[0]["accuracy"] == trained["accuracy"]
        assert files[0]["largest_difference"] < 1e-4
        assert all(one["latency_ms"]["batch_256"]["p50"] > 0 for one in files)
        assert f"On the {report['dataset']['test']} test rows" in " ".join(out[to].split())
    assert figures["test_rows"] == report["dataset"]["test"]
    assert (
        json.loads((folder / "student.onnx.json").read_text())["variants"][1]["bytes"]
        == (folder / "student.onnx").stat().st_size
    )

    for place, library in (
        ("student.onnx.md", "onnxruntime"),
        ("student.pt2.md", "torch"),
        ("student/README.md", "ensdistill"),
    ):
        _, front, text = (folder / place).read_text().split("---\n", 2)
        about = yaml.safe_load(front)
        assert about["license"] == "unknown"
        assert about["library_name"] == library
        assert about["pipeline_tag"] == "tabular-classification"
        metrics = {one["type"]: one["value"] for one in about["model-index"][0]["results"][0]["metrics"]}
        assert metrics["accuracy"] == pytest.approx(expected["accuracy"]["mean"], abs=1e-6)
        for word in (
            "no, yes",
            "age (float)",
            "Ensemble (2 members)",
            "labelled rows",
            "Cost:",
            "kept of the ensemble's gain",
        ):
            assert word in text, word
        assert report["students"]["mlp"]["verdict"] in text


def test_the_onnx_file_runs_without_torch_and_ensdistill(exported, table_run, tmp_path):
    """The five lines of the card, with onnxruntime, NumPy and pandas alone."""
    folder, _ = exported
    new = frame(40, seed=3)
    new.to_csv(tmp_path / "new.csv", index=False)
    card = (folder / "student.onnx.md").read_text()
    code = card.split("With onnxruntime alone:\n\n```python\n")[1].split("```")[0]
    program = textwrap.dedent("""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "ensdistill", "sklearn", "skl2onnx", "onnx"):
                    raise ImportError(name)

        sys.meta_path.insert(0, Blocked())
        import numpy as np, pandas as pd
        frame = pd.read_csv(sys.argv[1])
    """)
    program += code + "\nnp.save('p.npy', probabilities); np.save('label.npy', label.astype(str))\n"
    program += "assert not {'torch', 'ensdistill', 'sklearn'} & {*sys.modules}\n"
    (tmp_path / "student.onnx").write_bytes((folder / "student.onnx").read_bytes())
    (tmp_path / "program.py").write_text(program)
    subprocess.run([sys.executable, "-I", "program.py", "new.csv"], cwd=tmp_path, check=True)
    student = load_student(table_run)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), student.predict_proba(new), atol=1e-4)
    assert np.load(tmp_path / "label.npy").tolist() == student.predict(new).tolist()


def test_predict_takes_every_exported_file(exported, table_run, tmp_path):
    folder, _ = exported
    frame(30, seed=4).to_csv(tmp_path / "new.csv", index=False)
    expected = load_student(table_run).predict_proba(frame(30, seed=4))
    for name, more in (("student.onnx", []), ("student.pt2", ["--trust", LOADER]), ("student", [])):
        succeed("predict", folder / name, tmp_path / "new.csv", "-o", tmp_path / "out.csv", *more)
        np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")[["p_no", "p_yes"]], expected, atol=1e-5)


def test_a_pt2_file_is_read_only_where_its_loader_is_trusted(exported):
    folder, _ = exported
    with pytest.raises(
        ValueError, match=r"can run code that is in it.*pass trusted=\['torch\.export\.load'\].*--trust"
    ):
        load_student(folder / "student.pt2")


def test_calibrated_is_the_temperature_scaled_student_of_the_report(table_run, tmp_path):
    report = json.loads((table_run / "report.json").read_text())
    expected = report["students"]["mlp"]["models"]["student_temperature_scaled"]
    words = ["--to", "onnx", "--calibrated", "-o", tmp_path / "c.onnx", "--license", "cc0-1.0", "--quiet"]
    out = flat(succeed("export", table_run, *words))
    for name in ("c.onnx", "c.onnx.md", "c.onnx.json"):
        assert f"written: {tmp_path / name}" in out  # the result, in the quiet too
    figures = json.loads((tmp_path / "c.onnx.json").read_text())
    assert figures["temperature"] != 1
    for one in figures["variants"]:
        assert one["nll"] == pytest.approx(expected["nll"]["mean"], rel=1e-4)
    assert load_student(tmp_path / "c.onnx").temperature == figures["temperature"]
    card = (tmp_path / "c.onnx.md").read_text()
    assert "license: cc0-1.0" in card
    assert "calibrated to the ensemble" in card


def test_the_report_has_the_files_latency(exported, table_run, tmp_path):
    job = table_run.parents[1] / "job.yaml"
    text = succeed("report", job)
    assert "mlp: onnx, int8" in text
    assert "latency by onnxruntime" in " ".join(text.split())
    report = json.loads((table_run / "report.json").read_text())
    names = [one["name"] for one in report["exports"]]
    assert sorted(names) == ["onnx", "onnx, int8", "safetensors", "torch"]
    assert "mlp: onnx, int8" in (table_run / "report.html").read_text()
    assert "(unchanged)" in succeed("report", job)


def test_files_of_a_student_that_was_trained_anew_are_stale(exported, table_run, tmp_path, capsys):
    from ensdistill.cli.jobs import _warn_of_exports

    names = ["student", "student.int8.onnx", "student.onnx", "student.pt2"]
    document = json.loads(succeed(table_run, "--json"))
    assert (len(document["exports"]), document["stale_exports"]) == (4, [])
    _warn_of_exports(table_run)
    assert capsys.readouterr().err == ""
    folder = tmp_path / "flats"
    shutil.copytree(table_run, folder)
    member = folder / "seed-0" / "distill" / "mlp" / "student" / "member.json"
    about = json.loads(member.read_text())
    member.write_text(json.dumps({**about, "fingerprint": "another"}))
    document = json.loads(succeed(folder, "--json"))
    assert document["stale_exports"] == [str(folder / "export" / "mlp" / name) for name in names]
    assert flat(succeed(folder)).count("stale: of a student that was trained anew since") == 4
    _warn_of_exports(folder)
    assert "warning: stale, because their student was trained anew since:" in capsys.readouterr().err


def test_the_card_names_labels_that_the_graph_has_in_another_type():
    from ensdistill.job.exporting import Wish
    from ensdistill.job.model_card import _use

    for labels, note in (
        ((False, True), "`label` is an integer: 1 stands for True, 0 for False"),
        ((0.5, 2.0), "`label` is a text for each number"),
        ((1.0, 2.0), "`label` is an integer for each number"),
        (("no", "yes"), None),
        ((1, 2), None),
    ):
        text = _use(of_table(labels), Path("student.onnx"), Wish("onnx"))
        assert (note in text) if note else ("`label`" not in text)


def test_a_run_that_has_changed_or_not_finished_is_refused(table_run, tmp_path):
    folder = tmp_path / "runs" / "flats"
    shutil.copytree(table_run, folder)
    settings = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(settings.replace("batch_size: 32", "batch_size: 16"))
    status, _, err = run("export", folder, "--to", "onnx")
    assert status == 1
    assert "the data or the settings have changed since seed 0 · distill mlp was made: `ensdistill run" in err
    (folder / "seed-0/distill/mlp/stage.json").unlink()
    status, _, err = run("export", folder, "--to", "onnx")
    assert status == 1
    assert "has not finished: seed 0 · distill mlp is missing. `ensdistill run" in err


def test_wrong_options_are_refused(table_run, tmp_path):
    for words, message in (
        ([table_run, "--to", "torch", "--int8"], "--int8: expected to='onnx'"),
        ([table_run, "--to", "onnx", "-o", "x.pt2"], "--output: expected a file that ends in .onnx"),
        ([table_run, "--to", "tflite"], "invalid choice: 'tflite'"),
        ([tmp_path, "--to", "onnx"], "RUN: expected a run's folder"),
    ):
        status, _, err = run("export", *words)
        assert status == 2, err
        assert message in err
    status, _, err = run("export", table_run, "--to", "onnx", "--student", "ml")
    assert status == 2
    assert "student: expected one of mlp; got 'ml'; did you mean 'mlp'?" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    status, _, err = run("export", table_run, "--to", "safetensors", "-o", tmp_path / "other")
    assert status == 2
    assert "holds other files than a student" in err


def test_images_of_unlike_sizes_are_judged_and_calibrate_eight_bits():
    from functools import partial

    from serving_helpers import form_of, member

    from ensdistill.data.preprocess import ImageTransform
    from ensdistill.models import CNN
    from ensdistill.student.export import figures, to_onnx
    from ensdistill.student.serving import Student

    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (10 + i % 3, 12), np.uint8) for i in range(9)]
    factory = partial(CNN, image=[1, 8, 8], channels=[4], outputs=2)
    student = Student(member(factory, ImageTransform(size=8)), ("a", "b"), ("a", "b"), form_of(images))
    exported = to_onnx(student, images, int8=True)
    for model in (exported.model, exported.int8):
        found = figures(model.SerializeToString(), images, student.predict(images), calls=2)
        assert found["rows"] == 9
        assert found["latency"][256]["p50"] > 0
    assert exported.largest_difference < 1e-5
