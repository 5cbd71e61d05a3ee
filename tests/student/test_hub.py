"""Students on the Hugging Face Hub, which is a folder here: safetensors, JSON and a card, and the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import hub_mixin
from huggingface_hub.errors import RepositoryNotFoundError
from serving_helpers import frame, of_array, of_images, of_table, of_texts

from ensdistill import Student
from ensdistill.student.serving import hub

RNG = np.random.default_rng(0)
KINDS = {
    "array": (of_array, RNG.normal(size=(20, 3)).astype(np.float32)),
    "table": (of_table, frame(30, seed=1)),
    "images": (of_images, [np.full((8, 8), value, np.uint8) for value in (0, 100, 200)]),
    "texts": (of_texts, ["a red fox", "blue", ""]),
}


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """A hub of folders; the arguments of the last call of each function."""
    home, calls = tmp_path / "hub", {}

    class Api:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls["private"] = private
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **options):
            calls["upload"] = options
            shutil.copytree(folder_path, home / repo_id)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename="", revision=None, **options):
        calls["revision"] = revision
        if not (home / repo_id).exists():
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        return str(home / repo_id / filename)

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return SimpleNamespace(home=home, calls=calls)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_back_from_the_hub_as_it_went(repositories, kind):
    make, samples = KINDS[kind]
    student = make()
    address = student.push_to_hub("me/small", private=True, branch="v1")
    assert address == "https://hub/me/small/commit/1"
    assert repositories.calls["private"]
    assert repositories.calls["upload"]["revision"] == "v1"
    again = Student.from_pretrained("me/small", revision="v1")
    assert repositories.calls["revision"] == "v1"
    np.testing.assert_array_equal(again.predict_proba(samples), student.predict_proba(samples))
    assert again.labels == student.labels
    files = {file.name for file in (repositories.home / "me/small").rglob("*") if file.is_file()}
    assert {"student.json", "config.json", "README.md"} <= files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".md", ".skops"}


def test_a_folder_is_read_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    student, (_, samples) = of_array(temperature=2.5), KINDS["array"]
    student.save_pretrained(tmp_path / "small")
    student.save(tmp_path / "plain")
    for name in ("small", "plain"):
        again = Student.from_pretrained(tmp_path / name)
        np.testing.assert_array_equal(again.predict_proba(samples), student.predict_proba(samples))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config == {"library_name": "ensdistill", "task": "classification"}


def test_the_card_names_samples_and_classes_and_loads_the_student(tmp_path):
    student = of_table()
    student.save_pretrained(tmp_path / "small", name="me/small")
    text = (tmp_path / "small" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "ensdistill"
    assert yaml.safe_load(front)["pipeline_tag"] == "tabular-classification"
    assert body.startswith("\n# small\n")
    assert "rows of a table with the columns age (" in body
    assert f"- Classes ({len(student.classes)}): " in body
    assert 'student = Student.from_pretrained("me/small")' in body
    (tmp_path / "small" / "README.md").write_text("my own")
    student.save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "README.md").read_text() == "my own"


def test_nothing_of_a_downloaded_student_is_imported_that_is_not_trusted(repositories, monkeypatch):
    of_array().push_to_hub("me/small")
    (member,) = (repositories.home / "me/small").rglob("member.json")
    about = json.loads(member.read_text())
    about["recipe"]["class_path"] = "subprocess.Popen"
    member.write_text(json.dumps(about))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("was called"))
    with pytest.raises(ValueError, match=r"subprocess\.Popen"):
        Student.from_pretrained("me/small")


def test_a_repository_that_is_not_there_and_a_folder_of_something_else(repositories, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        Student.from_pretrained("me/nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a saved student"):
        Student.from_pretrained(tmp_path / "empty")
