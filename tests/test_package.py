"""The public names: loaded when they are used, known to type checkers, each with an example that the doctests
run."""

import ast
import inspect
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import ensdistill
from ensdistill import functional

ROOT = Path(__file__).parents[1]

LOSSES = ("distillation_loss", "linear_distillation_loss", "DistillationLoss", "RowStatistics")
TARGETS = ("EnsembleLogits", "QuantizedLogits", "LogProbs", "Probs", "TopK", "Counts")
ENCODERS = ("quantize_logits", "top_k_targets", "sample_counts")
MEMORY = ("build_info", "instruction_set", "use_instruction_set", "release_memory")


@pytest.mark.parametrize("name", ensdistill.__all__)
def test_a_public_name_is_there(name):
    value = getattr(ensdistill, name)
    assert name in dir(ensdistill)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("ensdistill.")


def test_the_functional_face_has_the_losses_of_all_tasks():
    losses = {name for name in functional.__all__ if name.endswith("_loss")}
    tasks = {f"{task}distillation_loss" for task in ("", "linear_", "multilabel_", "gaussian_")}
    assert losses == tasks
    assert functional.linear_distillation_loss is ensdistill.linear_distillation_loss


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"ensdistill": "1.2.3"}.__getitem__)
    assert ensdistill.__version__ == "1.2.3"

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert ensdistill.__version__ == "0+unknown"


def test_workflows_wheels_and_classifiers_name_the_same_pythons_and_the_oldest_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    of_classifiers = re.findall(r"Python :: (3\.\d+)\b", " ".join(project["project"]["classifiers"]))
    tests, wheels = (
        yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
        for name in ("tests", "wheels")
    )
    for job in (tests["tests"], wheels["older-and-newer-torch"]):
        matrix = job["strategy"]["matrix"]
        assert matrix["python"] == of_classifiers
        oldest = matrix["torch"][0].removesuffix(".0")
        assert f"torch>={oldest}" in project["project"]["dependencies"]
    tags = [f"cp{version.replace('.', '')}" for version in of_classifiers]
    assert project["tool"]["cibuildwheel"]["build"].split() == [f"{tag}-*" for tag in tags]
    assert wheels["cuda"]["strategy"]["matrix"]["python"] == [f"{tag}-{tag}" for tag in tags]
    assert f"torch=={oldest}.0 " in project["tool"]["cibuildwheel"]["before-build"][0]
    major, minor = map(int, oldest.split("."))
    target = f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"
    assert target in (ROOT / "setup.py").read_text()


def test_no_other_name_is():
    with pytest.raises(AttributeError, match="module 'ensdistill' has no attribute 'distilation_loss'"):
        _ = ensdistill.distilation_loss


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ensdistill.__file__).read_text(encoding="utf-8"))
    (block,) = [x for x in tree.body if isinstance(x, ast.If)]
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == {name: f"ensdistill.{home}" for name, home in ensdistill._HOME.items()}


@pytest.mark.parametrize("name", [*LOSSES, *TARGETS, *ENCODERS, *MEMORY])
def test_a_name_of_the_loss_family_is_documented(name):
    from ensdistill.loss import ops

    value = getattr(ops if name in MEMORY else ensdistill, name)
    text = inspect.getdoc(value)
    assert "Examples\n--------\n>>> " in text
    if name in LOSSES[:2] + TARGETS + ENCODERS:
        assert "Parameters\n----------\n" in text
    if name in LOSSES[:2] + ENCODERS:
        assert "Raises\n------\n" in text
        assert "Returns\n-------\n" in text
        described = text[text.index("Parameters\n") :].split("Returns\n-------")[0]
        parameters = list(inspect.signature(value).parameters)
        if "temperature ... z_loss" in described:  # of the logits' loss, which describes them
            del parameters[parameters.index("temperature") : parameters.index("z_loss")]
        assert [x for x in parameters if x not in described] == []
