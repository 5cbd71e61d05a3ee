"""``--json``, ``--quiet`` and ``--debug``; run.yaml, ``ensdistill RUN`` and ``compare``."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from job_helpers import flat, job_file, run, succeed, write_job

from ensdistill.cli.settings import load_config
from ensdistill.common.describe import describe
from ensdistill.job.settings_file import read_settings, sources_of


def loaded_by(*words: str) -> set[str]:
    """The large modules that a command imports."""
    program = (
        "import sys; from ensdistill.cli.main import main; "
        f"main({list(words)!r}); "
        "print('', *(m for m in ('torch', 'sklearn', 'scipy', 'pandas', 'numpy', 'rich', 'pydantic') "
        "if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_help_and_the_package_load_nothing_large():
    assert loaded_by("--help") == set()
    assert loaded_by("completion", "bash") == set()


def test_a_glance_at_a_run_loads_no_torch(finished_job):
    assert not loaded_by(str(finished_job)) & {"torch", "sklearn", "scipy", "pandas", "pydantic"}


def test_standard_output_is_one_json_document(copy):
    document = json.loads(succeed("report", job_file(copy), "--json"))
    assert document["run"] == str(copy)
    assert document["report"] == json.loads((copy / "report.json").read_text())
    assert document["changed"] is False
    document = json.loads(succeed("teachers", job_file(copy), "--json"))
    assert (document["command"], document["changed"], "report" in document) == ("teachers", False, False)
    assert json.loads(succeed("info", "--json"))["cpu"]["instruction_set"]
    assert list(json.loads(succeed("--version", "--json"))) == ["ensdistill"]
    status, out, err = run("completion", "bash", "--json")
    assert (status, out) == (2, "")
    assert "completion: there is no option '--json'" in err
    # An error leaves standard output empty.
    status, out, err = run("run", "nowhere.yaml", "--json")
    assert (status, out) == (2, "")
    assert "there is no file 'nowhere.yaml'" in err


def test_quiet_leaves_the_result_alone(tmp_path):
    file = write_job(tmp_path)
    assert run("teachers", file, "--quiet") == (0, "", "")
    status, out, err = run("run", "--quiet", file)
    assert (status, err) == (0, "")
    assert "Retained gain" in out
    assert "report.html" not in out


def test_debug_shows_where_an_error_was_raised(tmp_path):
    file = write_job(tmp_path, {"seeds": 0})
    status, _, err = run("run", file)
    assert (status, "Traceback" in err) == (2, False)
    status, _, err = run("run", file, "--debug")
    assert (status, "Traceback (most recent call last)" in err) == (2, True)


def test_run_yaml_holds_all_settings_and_serves_again(copy):
    succeed("report", job_file(copy), "--seeds", "1")
    settings = read_settings(copy)
    assert settings["distill"]["loss"]["temperature"] == 1.0  # a default
    assert sources_of(copy) == ["../../job.yaml"]
    again = load_config(["--config", str(copy / "run.yaml")])
    first = load_config(["--config", str(job_file(copy))])
    assert again.run_folder == copy
    for part in ("data", "teachers", "cache", "distill"):
        assert describe(getattr(again, part)) == describe(getattr(first, part))
    text = (copy / "run.yaml").read_text()
    assert "(unchanged)" in succeed("report", copy / "run.yaml")
    assert (copy / "run.yaml").read_text() == text


def test_a_run_without_a_name_has_that_of_its_file(tmp_path):
    file = write_job(tmp_path)
    settings = yaml.safe_load(file.read_text())
    del settings["name"]
    (tmp_path / "my job.yaml").write_text(yaml.safe_dump(settings))
    assert load_config(["--config", str(tmp_path / "my job.yaml")]).run_folder.name == "my job"
    assert load_config(["--config", str(tmp_path / "my job.yaml"), "--name", "b"]).run_folder.name == "b"
    assert load_config(["--config", str(file)]).run_folder.name == "tiny"


def test_another_file_with_other_settings_does_not_take_over_a_run(copy, tmp_path):
    file = job_file(copy)
    succeed("report", file)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / file.name
    # Only how and where results are made may differ.
    other.write_text(file.read_text() + "threads: 1\n")
    succeed("report", other)
    assert sources_of(copy) == ["../../other/job.yaml"]
    before = (copy / "run.yaml").read_text()
    status, out, err = run("run", file, "--distill.loss.temperature", "2")
    assert (status, out) == (2, "")
    assert "whose settings differ (distill): choose another name (--name tiny-2), or remove the folder" in err
    assert (copy / "run.yaml").read_text() == before
    # The file itself may change.
    succeed("teachers", other, "--distill.loss.temperature", "2")
    assert read_settings(copy)["distill"]["loss"]["temperature"] == 2


def test_a_run_is_shown_by_its_folder(copy):
    out = succeed(copy)
    assert "Digits" not in flat(out).split("finished")[1]
    assert "teachers 1/1, cache 1/1, direct small 1/1, distill small 1/1" in flat(out)
    report = json.loads((copy / "report.json").read_text())
    assert report["students"]["wide"]["verdict"].split(".")[0] in flat(out)
    assert f"ensdistill export {copy} --to onnx" in out
    document = json.loads(succeed(copy, "--json"))
    assert document["students"]["small"]["student"]["nll"] == report["models"]["student"]["nll"]["mean"]
    assert document["finished"]["distill wide"] == 1
    (copy / "report.json").unlink()
    (copy / "seed-0" / "distill" / "wide" / "student" / "model.safetensors").unlink(missing_ok=True)
    shutil.rmtree(copy / "seed-0" / "direct")
    document = json.loads(succeed(copy, "--json"))
    assert document["students"] == {}
    assert document["finished"] | {"direct small": 0, "direct wide": 0} == document["finished"]
    assert "go on: " in succeed(copy)


def test_a_folder_that_is_no_run_is_refused(finished_job, tmp_path):
    status, _, err = run(tmp_path)
    assert (status, f"{str(tmp_path)!r} is not the folder of a run" in err) == (2, True)
    status, _, err = run(finished_job.parent)
    assert (status, f"name one of its runs, {finished_job}" in err) == (2, True)
    status, _, err = run(finished_job, "x")
    assert (status, "expected no more arguments after a run's folder; got x" in err) == (2, True)


@pytest.fixture
def pair(copy, finished_job):
    """Two finished runs of the same rows; the second has a name of its own."""
    other = copy.with_name("other")
    shutil.copytree(finished_job, other)
    return copy, other


def test_runs_are_compared(pair):
    one, two = pair
    out = succeed("compare", one, two)
    report = json.loads((one / "report.json").read_text())
    shown = f"{100 * report['students']['wide']['models']['student']['accuracy']['mean']:.2f}"
    rows = [line.split() for line in out.splitlines() if line.split()[:2] == ["student", "(distilled)"]]
    assert sum(row.count(shown) for row in rows) == 2
    page = html.unescape((one.parent / "compare.html").read_text())
    assert page.count(f"<td>{shown}</td>") == 4  # of each run in the overview and in the table
    assert page.count('<tr class="student">') == 3  # accuracy, NLL, Brier
    assert report["students"]["wide"]["verdict"].split(".")[0] in page
    assert "tiny: small" in page
    assert "other: wide" in page
    assert "--ink" in page  # the report's style
    status, out, err = run("compare", one, two, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (list(document["runs"]), document["warnings"]) == (["tiny", "other"], [])


def test_runs_of_other_rows_are_compared_with_a_warning(pair):
    one, two = pair
    record = json.loads((two / "stage.json").read_text())
    record["rows"][0]["test"] = "another"
    (two / "stage.json").write_text(json.dumps(record))
    _, _, err = run("compare", one, two)
    assert err == (
        "ensdistill: warning: tiny and other have other test rows or classes: their figures are not comparable.\n"
    )
    assert "their figures are not comparable" in (one.parent / "compare.html").read_text()


def test_a_run_without_a_report_is_not_compared(pair):
    one, two = pair
    (two / "report.json").unlink()
    status, out, err = run("compare", one, two)
    assert (status, out) == (1, "")
    assert f"RUN: {two} has no report yet: ensdistill run {two}/run.yaml goes on with it" in err
