"""The examples run as they stand, with few steps; those of images and texts on data that is made up here.

Their own data is made by ``python -m examples.make_...``; where it is there, the settings are checked on it.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from job_helpers import succeed
from PIL import Image

from ensdistill.cli.settings import load_config

ROOT = Path(__file__).parents[2]
MADE = {
    "income": ("income.csv", "python -m examples.make_income"),
    "images": ("fashion", "python -m examples.make_fashion"),
    "text": ("packages.csv", "python -m examples.make_packages"),
    "multilabel": ("tags.csv", "python -m examples.make_packages --tags 50"),
    "regression": ("diamonds.csv", "python -m examples.make_diamonds"),
}


def smaller(name: str, folder: Path, **arguments: object) -> Path:
    """An example's settings with few steps and one seed, on other data where ``arguments`` name it."""
    settings = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    settings |= {"seeds": 1, "workers": 1, "folder": str(folder / "runs")}
    settings["data"]["init_args"] |= arguments
    settings["teachers"]["folds"] = settings["distill"]["folds"] = 2
    for member in settings["teachers"]["members"]:
        if kind_is_small(kind := str(member["init_args"].get("estimator", {}).get("class_path"))):
            size = "max_iter" if "Hist" in kind else "n_estimators"
            member["init_args"]["estimator"]["init_args"] = {size: 5}
        if member["class_path"] == "TorchMembers":
            own = member["init_args"]
            own |= {"count": 1, "optimization": {**own.get("optimization", {}), "steps": 8}}
    for student in settings["distill"]["students"].values():
        for stage in ("optimization", "direct"):
            student[stage] = {**student.get(stage, {}), "steps": 16}
    (path := folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return path


def kind_is_small(kind: str) -> bool:
    """Whether an estimator of this class has a number of trees or rounds."""
    return any(name in kind for name in ("Gradient", "Trees", "Forest"))


def dataset(folder: Path, name: str) -> dict:
    assert (folder / "runs" / name / "report.html").is_file()
    return json.loads((folder / "runs" / name / "report.json").read_text())["dataset"]


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths in the examples are relative to it


def test_a_csv_needs_twelve_lines_at_most():
    lines = (ROOT / "examples" / "table.yaml").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= 12


def test_the_table_runs(tmp_path, at_root):
    succeed("run", smaller("table", tmp_path))
    found = dataset(tmp_path, "table")
    # The eleven penguins without a known sex are the pool; three in four of the others are labelled.
    assert [found[part] for part in ("labelled", "pool", "test", "classes")] == [250, 11, 83, 2]


@pytest.mark.slow
def test_images_in_folders_run(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name, high in (("dark", 100), ("bright", 256)):
            (folder := tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, high, (12, 12)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    succeed(
        "run", smaller("images", tmp_path, path=str(tmp_path / "train"), test_path=str(tmp_path / "test"))
    )
    assert dataset(tmp_path, "images") == {
        "name": "ImageFolder",
        "labelled": 16,
        "pool": 64,
        "transfer": 80,
        "asked": 80,
        "test": 20,
        "classes": 2,
    }


@pytest.mark.slow
def test_texts_run(tmp_path):
    generator = np.random.default_rng(0)
    words = {"net": ["server", "protocol", "router", "file"], "doc": ["manual", "guide", "pages", "file"]}
    rows = [
        (" ".join(generator.choice([*words[section], "the", "for"], 6)) + f" {number}", section)
        for number, section in enumerate(generator.choice(["net", "doc"], 120))
    ]
    pd.DataFrame(rows, columns=["description", "section"]).to_csv(tmp_path / "packages.csv", index=False)
    succeed("run", smaller("text", tmp_path, path=str(tmp_path / "packages.csv")))
    assert dataset(tmp_path, "text")["classes"] == 2


@pytest.mark.slow
def test_tags_of_texts_run(tmp_path):
    generator = np.random.default_rng(0)
    words = {"role::server": "daemon", "net::http": "web", "use::viewing": "viewer"}
    rows = []
    for number in range(80):
        tags = [tag for tag in words if generator.random() < 0.5]
        text = " ".join([*(words[tag] for tag in tags), "the", "program", str(number)])
        rows.append((f"p{number}", text, ", ".join(tags) or None))
    frame = pd.DataFrame(rows, columns=["package", "description", "tags"])
    frame.to_csv(tmp_path / "tags.csv", index=False)
    succeed("distill", smaller("multilabel", tmp_path, path=str(tmp_path / "tags.csv")))
    folder = tmp_path / "runs" / "multilabel" / "seed-0" / "distill" / "ngrams" / "student"
    assert json.loads((folder / "student.json").read_text())["classes"] == sorted(words)


@pytest.mark.slow
def test_prices_run(tmp_path):
    generator = np.random.default_rng(0)
    carat, cut = generator.uniform(0.2, 2, 120), generator.choice(["Fair", "Good", "Ideal"], 120)
    price = 4000 * carat**2 + 300 * (cut == "Ideal") + 200 * generator.normal(size=120)
    frame = pd.DataFrame({"carat": carat, "cut": cut, "price": price.round().astype(int)})
    frame.to_csv(tmp_path / "diamonds.csv", index=False)
    succeed("run", smaller("regression", tmp_path, path=str(tmp_path / "diamonds.csv")))
    report = json.loads((tmp_path / "runs" / "regression" / "report.json").read_text())
    models = report["students"]["gaussian"]["models"]
    assert models["student"]["nll"] is not None
    assert report["models"]["ensemble"]["coverage"] is not None


@pytest.mark.parametrize("name", MADE)
def test_the_settings_fit_the_made_data(name, at_root):
    file, command = MADE[name]
    if not (ROOT / "examples" / "data" / file).exists():
        pytest.skip(f"examples/data/{file} is not made: {command}")
    split = load_config(["--config", f"examples/{name}.yaml"]).split(0)
    assert min(len(split.labelled), len(split.pool), len(split.test)) >= 200


@pytest.mark.slow
def test_the_script_of_the_table_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "table.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ensemble: 9" in done.stdout
    assert "student: " in done.stdout
    assert list(tmp_path.iterdir()) == []
