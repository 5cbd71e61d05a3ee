"""Checks of a job's settings against the task of its labels, before any work."""

from __future__ import annotations

from ensdistill.common.tasks import Task
from ensdistill.job.config import Config
from ensdistill.job.method_config import check_members_and_task
from ensdistill.loss.regression import RegressionSettings
from ensdistill.teachers.recipes import TorchMembers


def check_task(config: Config) -> None:
    """Refuse settings of another task than that of the labels.

    Raises
    ------
    ValueError
        Names the setting and both tasks.
    """
    task = config.split(0).task
    for seed in range(1, config.seeds):
        if (other := config.split(seed).task) != task:
            raise ValueError(
                f"data: expected labels of one task; those of seed 0 are of {task}, of seed {seed} of {other}"
            )
    _check_variances(config, task)
    members = sum(len(recipe.names()) for recipe in config.teachers.recipes)
    check_members_and_task(config.distill, members, task, config.teachers.select)
    for name, student in config.distill.students.items():
        if student.estimator is not None:
            try:
                student.tree_student(student.loss or config.distill.loss, task)
            except ValueError as error:
                raise ValueError(f"distill.students.{name}.{error}") from error
    if task == "regression":
        _check_regression(config)


def _check_variances(config: Config, task: Task) -> None:
    if task == "regression":
        return
    for i, recipe in enumerate(config.teachers.recipes):
        if isinstance(recipe, TorchMembers) and recipe.variance:
            raise ValueError(
                f"teachers.members.{i}.init_args.variance: expected false for the task {task}; a variance is "
                "of the task regression alone"
            )
    for name, student in config.distill.students.items():
        if student.variance:
            raise ValueError(
                f"distill.students.{name}.variance: expected false for the task {task}; a variance is of the "
                "task regression alone"
            )


def _check_regression(config: Config) -> None:
    if config.teachers.combiner != "prob":
        raise ValueError(
            "teachers.combiner: expected prob for the task regression, the mean of the members' predictions; "
            f"got {config.teachers.combiner}"
        )
    losses = {"distill.loss": config.distill.loss}
    losses |= {
        f"distill.students.{name}.loss": one.loss
        for name, one in config.distill.students.items()
        if one.loss is not None
    }
    for name, loss in losses.items():
        try:
            RegressionSettings.of(loss)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error
