"""A trial's settings as a student of a job's YAML, which is trained by them without a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ensdistill.common.describe import module_recipe
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.data import Rows
from ensdistill.student.automatic import DIRECT, lengthened, usual_steps
from ensdistill.student.search.build import Built, estimator_setting
from ensdistill.student.search.space import Space

SHORT = 0.25  # of the usual steps: settings of shorter trials are not those of a whole training
OF_RESULT = ("variance", "mixture")  # settings of what is learned, which hold for any length


def section_of(
    built: Built,
    space: Space,
    values: Mapping[str, Any],
    rows: Rows | None = None,
) -> dict[str, Any]:
    """The section of one student.

    A search has minutes for many trainings. The one student that was chosen is trained for as long as one
    without a search, if that is longer. Where its trial was much shorter, the size is the search's, and the
    other settings are those of a student without a search: a short training is best with labels in its
    loss, dropout and rates that hold a long one back. Its *direct* is that of a student without a search: it
    was stronger on four of five sets than one by the settings of the search's direct trials, in a fifth of
    the time.

    Parameters
    ----------
    built : Built
    space : Space
        The student's.
    values : mapping
        Of its trial.
    rows : Rows, optional
        From which the student learns; by default its training has the length of its trial.
    """
    own, candidate = dict(values), built.candidate
    optimization = None if candidate.estimator is not None else space.optimization(own)
    if optimization is not None and rows is not None:
        model, size = built.factory(own)(), optimization.batch_size
        usual = usual_steps(model, rows, built.preprocess, size)
        if optimization.steps < SHORT * usual:
            own |= {name: value for name, value in space.defaults().items() if name not in OF_RESULT}
            optimization = StudentOptimization()
        else:
            optimization = lengthened(optimization, usual)
    loss = space.loss(own)
    found: dict[str, Any] = {"description": candidate.key}
    if optimization is None:
        assert candidate.estimator is not None
        found["estimator"] = estimator_setting(candidate.estimator, own)
        found["preprocess"] = candidate.preprocess
    else:
        assert candidate.model is not None
        recipe = module_recipe(candidate.model)
        assert recipe is not None
        arguments = dict(recipe["init_args"])
        if own.get("dropout") or "dropout" in arguments:
            arguments["dropout"] = own["dropout"]
        found["model"] = {"class_path": recipe["class_path"], "init_args": arguments}
        found["preprocess"] = candidate.preprocess
        if own.get("variance"):
            found["variance"] = True
        found["optimization"] = _plain(optimization)
        found["direct"] = _plain(DIRECT)
        if (ema := space.ema(own)) is not None:
            found["ema"] = ema
    # A section without a loss would take the job's own, which the trial never had.
    found["loss"] = {"temperature": loss.temperature, "alpha": loss.alpha}
    return found


def _plain(optimization: StudentOptimization) -> dict[str, Any]:
    return {one.name: getattr(optimization, one.name) for one in fields(Optimization)}
