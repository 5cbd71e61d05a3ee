"""The ensemble: members, their weights, and the rule that combines them.

==================  ===================================================================================
``ensemble``        ``Ensemble``: predictions, and everything that is fitted to held-out predictions
``regression``      ``RegressionEnsemble``: the same for regressors; ``base``: common to both
``from_factories``  ``Ensemble.train``: many members from one factory
``out_of_fold``     ``train_ensemble``: members of any recipes, judged on folds of their training rows
``recipes``         members to be trained; ``methods``: seeds, bagging, snapshots, fast geometric
``auto``            members for a table within a budget of time
``existing``        members that exist already; ``member_files``: readers of their files
``train``           the trainer of all recipes: folder, processes, resumption
``stacked``         members of one architecture that predict in one call
``lookups``         members that look up the rows that they were fitted to
``prepared``        recipes on raw samples, with a fitted preprocess
``stored_logits``   logits that exist already, as arrays or in a cache
``storage``         an ensemble as a folder
==================  ===================================================================================

The names are loaded when they are first used: who takes a member's adapter alone waits for no scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Ensemble": "ensemble",
    "RegressionEnsemble": "regression",
    "check_logits": "validation",
    "looks_up": "lookups",
    "train_ensemble": "out_of_fold",
}

__all__ = ["Ensemble", "RegressionEnsemble", "check_logits", "looks_up", "train_ensemble"]

if TYPE_CHECKING:
    from ensdistill.teachers.ensemble import Ensemble
    from ensdistill.teachers.lookups import looks_up
    from ensdistill.teachers.out_of_fold import train_ensemble
    from ensdistill.teachers.regression import RegressionEnsemble
    from ensdistill.teachers.validation import check_logits


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
