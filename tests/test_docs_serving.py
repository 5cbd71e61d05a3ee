"""The page on serving: its Python runs on a run of the penguins, and its commands and options exist."""

import re
import shlex
import shutil
from pathlib import Path

import yaml
from job_helpers import succeed

from ensdistill.cli import export, predict

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "penguins.csv", "examples")
    shutil.copy("examples/penguins.csv", "new.csv")
    quick = {"steps": 60, "batch_size": 32, "learning_rate": 0.02}
    model = {"class_path": "MLP", "init_args": {"hidden": [8]}}
    trees = {"class_path": "sklearn.ensemble.RandomForestClassifier", "init_args": {"n_estimators": 10}}
    settings = {
        "name": "penguins",
        "seeds": 1,
        "data": {"class_path": "Table", "init_args": {"path": "examples/penguins.csv", "target": "species"}},
        "teachers": {
            "folds": 2,
            "members": [{"class_path": "SklearnMembers", "init_args": {"estimator": trees}}],
        },
        "distill": {"folds": 2, "students": {"mlp": {"model": model, "optimization": quick}}},
    }
    Path("penguins.yaml").write_text(yaml.safe_dump(settings))
    succeed("run", "penguins.yaml")
    code, on_the_hub = blocks("python")
    names = {}
    exec(compile(code, "docs/serving.md", "exec"), names)
    exec(compile(on_the_hub, "docs/serving.md", "exec"), names)
    assert set(names["labels"]) <= {"Adelie", "Chinstrap", "Gentoo"}
    assert names["probabilities"].shape == (344, 3)
    assert names["uncertainty"].shape == (344,)
    assert Path("penguins-student/student.json").is_file()
    first = shlex.split(blocks("sh")[0].splitlines()[0])[1:]
    succeed(*first)
    assert len(Path("answers.csv").read_text().splitlines()) == 345


def test_the_commands_and_options_are_known():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line.partition("| ")[2] or line, comments=True)
        if ">" in words:
            words = words[: words.index(">")]
        module = {"predict": predict, "export": export}[words[1]]
        module.parser().parse(words[2:])
    options = {name for module in (predict, export) for name in module.parser()._option_string_actions}
    assert {name for name in re.findall(r"`(--[a-z0-9-]+)", PAGE)} <= options
