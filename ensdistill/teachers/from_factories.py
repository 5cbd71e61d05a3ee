"""``Ensemble.train``: members of one factory, or of several, as recipes for the one trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensdistill.common.combiners import Combiner
from ensdistill.common.optimization import Optimization
from ensdistill.common.tasks import Task
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess import as_setting
from ensdistill.teachers import planning, storage
from ensdistill.teachers import train as training
from ensdistill.teachers.methods import Method, as_method
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.requirements import check_recipes
from ensdistill.teachers.stack import Watch, Way
from ensdistill.teachers.stack.validation import check_way

if TYPE_CHECKING:
    from ensdistill.teachers.ensemble import Ensemble


def train(
    cls: type[Ensemble],
    factory: Any,
    data: Rows | tuple[Any, Any],
    *,
    members: int | Sequence[int] | None = None,
    method: str | Method = "seeds",
    seed: int = 0,
    sample_weight: Any = None,
    optimization: Optimization | Sequence[Optimization] | None = None,
    augment: Augmentation | None = None,
    classes: Sequence[str] | None = None,
    combiner: Combiner = "prob",
    way: Way = "auto",
    device: str = "cpu",
    n_jobs: int | None = None,
    name: str | None = None,
    preprocess: Any = "auto",
    task: Task | None = None,
    variance: bool = False,
    folder: Path | str | None = None,
    progress: bool | Watch | None = None,
) -> Any:
    """Train an ensemble.

    Under ``torchrun`` every process trains its part of the members (gloo, nccl on GPUs) and returns the whole
    ensemble. Members that were finished before a process died are not trained again: pass the same ``folder``
    again.

    Members that share most of their parameters (BatchEnsemble and the like) are not offered: none of them is
    a teacher that could be selected, weighed and saved by itself.

    Parameters
    ----------
    factory : callable, estimator, or list of those
        A callable that makes a new module: its class, ``functools.partial`` of it, a function. Or an
        estimator that is to be fitted, of scikit-learn, XGBoost, LightGBM or CatBoost. A list makes different
        members: hyperparameters, architectures, kinds (Wenzel et al., 2020, "Hyperparameter Ensembles for
        Robustness and Uncertainty Quantification"). A booster that stops early (``early_stopping_rounds``)
        does so by the rows that its bootstrap or subsample left out; with ``seeds``, by a fifth of the rows
        of each class, drawn by its seed.
    data : Rows, or (inputs [N, ...], labels [N])
        Inputs are an array of numbers, a frame, a list of texts or of images, a mapping of arrays, or a data
        set that is read (see ``preprocess``). Estimators are fitted to float64 arrays as they are, modules to
        their float32 values. NaN stands for a missing value, for estimators that take it. Labels are class
        indices (integers, whole floats), or names (strings, booleans), as arrays, lists, tensors, or columns
        of a data frame, categories included.
    members : int, or sequence of int
        The number of members; one of each factory of a list by default. A sequence of numbers, counted from
        0, trains those members of the ensemble alone. A member does not depend on the others (see
        :func:`ensdistill.teachers.stack.train_stack` for how exactly).
    method : {"seeds", "bagging", "subsample", "snapshot", "fast_geometric"}, or a class of
    ``ensdistill.teachers.methods``
        The reason why the members of one factory differ.
    seed : int
    sample_weight : array-like [N], optional
        Weights of the rows, at least 0: passed to the ``fit`` of estimators. A module's loss of a row is
        multiplied by its weight over the mean weight of the member's rows.
    optimization : Optimization, or list of those, optional
        Of torch members: steps, batch size, learning rate. A list has one for each factory, or makes
        different members of a single one. Snapshots and fast geometric ensembles take their members from one
        training of so many steps.
    augment : Augmentation, optional
        Of torch members.
    classes : sequence of str, optional
        Names by index; by default the labels' own names, or their numbers.
    combiner : {"prob", "logit", "log_prob"}
    way : {"auto", "measured", "stacked", "one_by_one", "side_by_side"}
        Torch members of one factory train as one stack, one after the other, or several at once on threads;
        see
        :func:`ensdistill.teachers.stack.train_stack`. ``auto`` decides by the number of members; ``measured``
        by a clock, so that its bits may differ from run to run.
    device : str
    n_jobs : int, optional
        Estimators fitted at once, as in scikit-learn.
    name : str, optional
        Members are called ``name-1``, ``name-2``, ...; by default after their class.
    preprocess : "auto", None, a preprocess, an object with ``fit``, or a function's import path
        From raw samples to the members' own input; it is fitted to the inputs, and saved with each member.
        Arrays stay as they are by default; see :class:`ensdistill.teachers.recipes.SklearnMembers` and
        :class:`ensdistill.teachers.recipes.TorchMembers` for the defaults of tables, texts and images.
    task : {"classification", "multilabel", "regression"}, optional
        The task of labels that are no Rows: several columns of 0 and 1 (NaN where unknown) are multi-label,
        numbers [N] or [N, D] a regression. Classification by default. A regression makes a
        :class:`ensdistill.teachers.RegressionEnsemble`.
    variance : bool
        Whether modules of a regression return means and then the logarithms of variances, [N, 2 D].
    folder : path, optional
        Members are kept there as they are finished, with checkpoints of the others. ``Ensemble.load(folder)``
        reads it in the end; with ``trusted=`` where the factory is of classes that are neither torch's,
        scikit-learn's nor this package's.
    progress : bool, or callable, optional
        True: a live view of all members. A callable gets each :class:`ensdistill.teachers.stack.Status`.

    Raises
    ------
    ValueError, TypeError
        Data of one class, missing labels, labels out of range, NaN or ``sample_weight`` for a factory that
        doesn't take it, or members that would be equal. A factory that returns a module which exists already,
        or another number of outputs, or one that can't be written down where there is a folder (before
        anything is trained), or whose first fitted member holds types that are not trusted.
    FloatingPointError
        A loss that is not finite; names the member and the step.

    Examples
    --------
    >>> import numpy as np
    >>> from ensdistill.models import MLP
    >>> from ensdistill.teachers import Ensemble
    >>> x = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 8]
    >>> y = np.array(["even", "odd"] * 16)
    >>> fast = Optimization(steps=60, batch_size=8, learning_rate=0.05)
    >>> ensemble = Ensemble.train(lambda: MLP(4, [8], 2), (x, y), members=3, optimization=fast)
    >>> ensemble.classes, ensemble.names, float((ensemble.predict_proba(x).argmax(1) == (y == "odd")).mean())
    (('even', 'odd'), ('member-1', 'member-2', 'member-3'), 1.0)
    """
    check_way(way, device)
    rows = planning.as_data(data, classes, sample_weight, task)
    settings = planning.Settings(
        as_method(method), augment, way, device, n_jobs, folder is not None, as_setting(preprocess), variance
    )
    planned, names = planning.plan(factory, members, seed, name, rows.labels, settings, optimization)
    recipes = prepare_recipes([recipe for recipe, _ in planned], rows.inputs, len(rows.classes), seed)
    planned = [(recipe, jobs) for recipe, (_, jobs) in zip(recipes, planned, strict=True)]
    check_recipes(planned, rows)

    def combine(made: dict[str, Any]) -> Any:
        members = [made[name] for name in names]
        return cls.from_members(members, combiner=combiner, classes=rows.classes, task=rows.task)

    return training.train(
        training.Training(planned, rows, {}),
        combine,
        device=device,
        folder=None if folder is None else Path(folder),
        progress=progress,
        write=storage.write_about,
    )
