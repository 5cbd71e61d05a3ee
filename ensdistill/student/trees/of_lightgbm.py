"""LightGBM with the objective of soft targets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ensdistill.student.trees.fits import Boosted, Fit

DROPPED = (
    "importance_type",
    "metric",
    "eval_metric",
    "callbacks",
    "early_stopping_round",
    "early_stopping_rounds",
    "early_stopping",
    "n_iter_no_change",
    "first_metric_only",
)
ROUNDS = (
    "n_estimators",
    "num_iterations",
    "num_iteration",
    "n_iter",
    "num_tree",
    "num_trees",
    "num_round",
    "num_rounds",
    "nrounds",
    "num_boost_round",
    "max_iter",
)
KINDS = ("boosting", "boost", "boosting_type")  # names of one parameter; the first that is given counts
REFUSED: dict[str, tuple[Any, ...]] = {
    "objective": ("binary", "multiclass"),
    "class_weight": (),
    "is_unbalance": (False,),
    "scale_pos_weight": (1, 1.0),
    "linear_tree": (False,),
    # The trees of a random forest are averaged.
    **dict.fromkeys(KINDS, ("gbdt", "gbrt", "dart", "goss")),
    "num_class": (),
}


def fit_lightgbm(fit: Fit) -> Boosted:
    """Train a booster, whose text file is that of LightGBM's own softmax (of two classes: its sigmoid)."""
    import lightgbm

    given = fit.parameters(DROPPED)
    kind = next((given[name] for name in KINDS if name in given), "gbdt")
    given = {key: value for key, value in given.items() if key not in REFUSED}
    judge = fit.judge_for(kind)
    rounds = next((int(given[name]) for name in ROUNDS if name in given), 100)
    width = 1 if fit.classes == 2 else fit.classes
    start = fit.start()
    settings = {key: value for key, value in given.items() if key not in ROUNDS}
    settings.setdefault("random_state", fit.seed % 2**31)
    if not {"verbose", "verbosity"} & set(settings):
        settings["verbosity"] = -1  # as quiet as the two other libraries, with a job's live view beside it
    if not {"force_row_wise", "force_col_wise", "deterministic"} & set(settings):
        # LightGBM times both layouts and takes the faster one, so that two runs could differ in bits.
        settings |= {"deterministic": True, "force_row_wise": True}
    # Without the filter LightGBM also takes features that min_child_samples lets no tree split by; with a
    # custom objective it fails where all are such.
    settings.setdefault("feature_pre_filter", False)
    settings |= {"boosting": kind, "objective": _objective(fit), "num_class": width, "metric": "None"}

    def data(features: Any, rows: int, reference: Any = None) -> Any:
        # A custom objective has no average to start from: the scores start at these numbers.
        begin = np.tile(start, (rows, 1)) if width > 1 else np.full(rows, start[0])
        return lightgbm.Dataset(features, init_score=begin, reference=reference)

    train = data(fit.features, len(fit.objective))
    more: dict[str, Any] = {}
    if judge is not None:
        more = {
            "valid_sets": [data(judge.samples, len(judge.objective), train)],
            "feval": lambda scores, _: ("value", fit.value(scores), True),
            "callbacks": [lightgbm.early_stopping(judge.ends(rounds), verbose=False)],
        }
    try:
        booster = lightgbm.train(settings, train, rounds, **more)
    except lightgbm.basic.LightGBMError as error:
        if "num_features" not in str(error):
            raise
        raise ValueError(
            f"rows.inputs: {fit.name}: expected a column with more than one value; LightGBM found none"
        ) from error
    kept = booster.best_iteration if booster.best_iteration > 0 else None
    return Boosted(_own_format(booster, start, kept), kept or booster.current_iteration(), rounds)


def parameter_names() -> tuple[set[str], set[str]]:
    """The names of an LGBMClassifier's parameters, and all others of the library."""
    from lightgbm import LGBMClassifier
    from lightgbm.basic import _ConfigAliases

    aliases = _ConfigAliases._get_all_param_aliases()
    listed = {name for names in aliases.items() for name in (names[0], *names[1])}
    return set(LGBMClassifier().get_params()), listed | {*DROPPED, *ROUNDS, *REFUSED}


def _objective(fit: Fit) -> Any:
    factor = fit.classes / (fit.classes - 1)  # as LightGBM's multiclass objective
    return lambda scores, _: fit.derivatives(scores, factor)


def _own_format(booster: Any, start: np.ndarray, kept: int | None) -> Any:
    """The booster as a model of LightGBM's own objective, which adds the starting scores itself.

    They become part of the first round's leaves, as LightGBM's own average does.
    """
    import lightgbm

    first = booster.dump_model(num_iteration=1)["tree_info"]
    for tree, value in enumerate(start):
        for leaf in range(first[tree]["num_leaves"]):
            booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) + value)
    text = booster.model_to_string(num_iteration=kept if kept is not None else -1)
    name = "binary sigmoid:1" if len(start) == 1 else f"multiclass num_class:{len(start)}"
    text = re.sub(r"^objective=.*\n", "", text, flags=re.M)
    return lightgbm.Booster(
        model_str=text.replace("\nfeature_names=", f"\nobjective={name}\nfeature_names=", 1)
    )
