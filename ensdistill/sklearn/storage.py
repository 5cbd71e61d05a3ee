"""A fitted classifier or regressor as a folder, without pickle."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

import ensdistill
from ensdistill.common.files import read_json, write_json
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.loss.settings import LossSettings
from ensdistill.sklearn.inputs import Form
from ensdistill.sklearn.judgement import Report
from ensdistill.student.serving import Student
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import BoostedMember, SklearnMember, TorchMember, inner
from ensdistill.teachers.members.standardised import Standardised

FORMAT = 1
FILE = "classifier.json"
GROUPS: dict[str, Any] = {"loss": LossSettings, "optimization": Optimization}


def save(classifier: Any, folder: Path) -> None:
    """See :meth:`ensdistill.sklearn.DistilledClassifier.save`."""
    parameters: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in classifier.get_params(deep=False).items():
        value = value.item() if isinstance(value, np.generic) else value
        value = value.plain() if isinstance(value, StudentOptimization) and not value.extras else value
        if name == "student" and isinstance(inner(classifier.student_.member), BoostedMember):
            left_out.append(name)  # a booster's file holds its trees, and not all of its parameters
        elif name in ("teachers", "student"):
            parameters[name] = "auto" if isinstance(value, str) else "fitted"
        elif name in GROUPS and type(value) is GROUPS[name]:  # others may name classes
            parameters[name] = asdict(value)
        elif value is None or isinstance(value, (bool, int, float, str)) or value == []:
            parameters[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            parameters[name] = list(value)
        else:
            left_out.append(name)
    about = {
        "format": FORMAT,
        "version": ensdistill.__version__,
        "parameters": parameters,
        "form": asdict(classifier._form),
        **_outputs(classifier),
        "seeded": _seeded(classifier.student),
        "features": [str(name) for name in getattr(classifier, "feature_names_in_", [])],
        "report": None if classifier.report_ is None else classifier.report_.figures,
    }
    json.dumps(about)  # an error comes before an earlier save is touched
    (folder / FILE).unlink(missing_ok=True)
    classifier.ensemble_.save(folder / "ensemble")
    classifier.student_.save(folder / "student")
    write_json(folder / FILE, about)
    if left_out:
        warnings.warn(
            f"save: {', '.join(left_out)} can't be written, so the loaded classifier has the default; what "
            "was fitted is complete",
            stacklevel=3,
        )


def _outputs(estimator: Any) -> dict[str, Any]:
    """The classes of a classifier, or the number of outputs of a regressor, as plain JSON."""
    if estimator._numbers:
        return {"numbers": estimator.n_outputs_, "flat": estimator._is_flat}
    values = estimator.classes_
    stored = values.astype(str) if values.dtype.kind == "M" else values  # JSON has no dates
    more = {"multilabel": True} if estimator.multilabel_ else {}
    return {"classes": {"dtype": values.dtype.str, "values": stored.tolist()}, **more}


def load(cls: type, folder: Path, trusted: Sequence[str]) -> Any:
    """See :meth:`ensdistill.sklearn.DistilledClassifier.load`."""
    about = read_json(folder / FILE)
    if not isinstance(about, dict):
        raise ValueError(f"{folder}: expected a saved DistilledClassifier; there is no {FILE}")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder / FILE}: was written by ensdistill {about.get('version')} (format "
            f"{about.get('format')}); this is version {ensdistill.__version__}, which reads format "
            f"{FORMAT}: pip install --upgrade ensdistill"
        )
    ensemble = Ensemble.load(folder / "ensemble", trusted)
    student = Student.load(folder / "student", trusted)
    parameters = dict(about["parameters"])
    for name, group in GROUPS.items():
        if isinstance(parameters.get(name), dict):
            parameters[name] = group(**parameters[name])
    if parameters["teachers"] == "fitted":
        parameters["teachers"] = ensemble
    if parameters.get("student") == "fitted":
        parameters["student"] = _parameter(student, about.get("seeded", []))
    found: Any = cls(**parameters)
    form = about["form"]
    found._form = Form(form["kind"], tuple(form["shape"]), form["columns"])
    if ("numbers" in about) != found._numbers:
        kind = "DistilledRegressor" if "numbers" in about else "DistilledClassifier"
        raise ValueError(f"{folder}: expected a saved {cls.__name__}; it holds a {kind}")
    found._is_flat = about.get("flat", True)
    if found._numbers:
        found.n_outputs_ = about["numbers"]
    else:
        found.classes_ = np.array(about["classes"]["values"], np.dtype(about["classes"]["dtype"]))
        found.multilabel_ = about.get("multilabel", False)
    found.ensemble_, found.student_ = ensemble, student
    found.report_ = None if about["report"] is None else Report(about["report"])
    found.search_ = None
    found.retained_gain_ = None if found.report_ is None else found.report_.retained_gain
    if about["features"]:
        found.feature_names_in_ = np.array(about["features"], object)
    if form["kind"] != "text":
        found.n_features_in_ = form["shape"][0] if form["kind"] == "array" else len(form["columns"])
    return found


def _seeded(student: Any) -> list[str]:
    """The parameters of an estimator that get the seed of the fit, because they are None."""
    if isinstance(student, (str, type)) or not hasattr(student, "get_params"):
        return []
    parameters = student.get_params()
    return sorted(n for n, value in parameters.items() if n.endswith("random_state") and value is None)


def _parameter(student: Student, seeded: Sequence[str]) -> Any:
    """The parameter that makes such a student again: a network's factory, or the estimator, not fitted, and
    without the seeds of the fit that was saved."""
    member = inner(student.member)
    if isinstance(member, TorchMember):
        module, recipe = member.module, member.recipe or {}
        if isinstance(module, Standardised):  # the network within is the parameter
            module, recipe = module.model, recipe.get("init_args", {}).get("model", {}).get("module", {})
        return partial(type(module), **recipe.get("init_args", {}))
    if not isinstance(member, SklearnMember):
        return "auto"
    estimator = clone(member.estimator)
    known = estimator.get_params()
    return estimator.set_params(**{name: None for name in seeded if name in known})
