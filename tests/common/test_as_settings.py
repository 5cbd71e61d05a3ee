"""Objects as YAML settings: each example's settings come back as they were, and defaults are left out."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensdistill.cli.classes import MODULES, parse
from ensdistill.cli.settings import load_config
from ensdistill.common.as_settings import as_settings, group_settings
from ensdistill.common.optimization import Optimization
from ensdistill.job.config import Config
from ensdistill.models import MLP
from ensdistill.teachers.recipes import TorchMembers

EXAMPLES = sorted(
    path
    for path in Path(__file__).parents[2].glob("examples/*.yaml")
    if path.stem != "existing_members"  # its members' files are made by a program
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_settings_of_a_job_make_an_equal_job(path: Path) -> None:
    before = load_config(["--config", str(path)])
    written = yaml.safe_dump(group_settings(before, tuple(MODULES)), sort_keys=False)
    after = parse(Config, yaml.safe_load(written))
    assert yaml.safe_dump(group_settings(after, tuple(MODULES)), sort_keys=False) == written
    assert list(after.distill.students) == list(before.distill.students)
    if before.teachers.members == "auto":
        assert after.teachers == before.teachers
        return
    for one, other in zip(after.teachers.members, before.teachers.members, strict=True):
        assert (one.names(), one.fingerprint()) == (other.names(), other.fingerprint())
    assert (after.cache, after.seeds, after.name) == (before.cache, before.seeds, before.name)


def test_defaults_are_left_out() -> None:
    assert group_settings(Optimization()) == {}
    assert as_settings(ExtraTreesClassifier()) == {"class_path": "sklearn.ensemble.ExtraTreesClassifier"}
    recipe = TorchMembers(partial(MLP, hidden=[8]), optimization=Optimization(steps=7))
    assert as_settings(recipe, ("ensdistill.models", "ensdistill.teachers.recipes")) == {
        "class_path": "TorchMembers",
        "init_args": {
            "model": {"class_path": "MLP", "init_args": {"hidden": [8]}},
            "optimization": {"steps": 7},
        },
    }


def test_parts_of_a_pipeline_are_settings_of_their_own() -> None:
    made = as_settings(make_pipeline(StandardScaler(with_mean=False), ExtraTreesClassifier(np.int64(7))))
    assert made["init_args"]["steps"] == [
        [
            "standardscaler",
            {"class_path": "sklearn.preprocessing.StandardScaler", "init_args": {"with_mean": False}},
        ],
        [
            "extratreesclassifier",
            {"class_path": "sklearn.ensemble.ExtraTreesClassifier", "init_args": {"n_estimators": 7}},
        ],
    ]


@pytest.mark.parametrize("value", [object(), np.zeros(2), lambda: None])
def test_objects_without_settings_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="expected plain data, a dataclass, an estimator"):
        as_settings(value)
