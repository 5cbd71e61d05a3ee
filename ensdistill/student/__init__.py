"""The student's training: the trainers, and the losses that they take. The names are loaded when they are
first used, because a student in an ONNX file runs without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "as_you_go": ("CacheAsYouGo",),
    "automatic": ("Automatic",),
    "batches": ("Batch",),
    "callbacks": ("Callback", "TrainingState"),
    "contributions": ("Contributions", "member_contributions"),
    "generations": ("born_again",),
    "live": ("LiveView",),
    "methods": ("HardLabels", "MomentTargets", "SoftLabels", "SoftTargets", "Start", "StudentLoss"),
    "online": ("OnlineTeachers",),
    "sources": ("RowTargets", "TargetSource"),
    "together": ("distill_many",),
    "trainer": ("StudentTrainer", "Trained"),
    "trees": ("TreeStudent",),
    "validation": ("Validation",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Automatic",
    "Batch",
    "CacheAsYouGo",
    "Callback",
    "Contributions",
    "HardLabels",
    "LiveView",
    "MomentTargets",
    "OnlineTeachers",
    "RowTargets",
    "SoftLabels",
    "SoftTargets",
    "Start",
    "StudentLoss",
    "StudentTrainer",
    "TargetSource",
    "Trained",
    "TrainingState",
    "TreeStudent",
    "Validation",
    "born_again",
    "distill_many",
    "member_contributions",
]

if TYPE_CHECKING:
    from ensdistill.student.as_you_go import CacheAsYouGo
    from ensdistill.student.automatic import Automatic
    from ensdistill.student.batches import Batch
    from ensdistill.student.callbacks import Callback, TrainingState
    from ensdistill.student.contributions import Contributions, member_contributions
    from ensdistill.student.generations import born_again
    from ensdistill.student.live import LiveView
    from ensdistill.student.methods import (
        HardLabels,
        MomentTargets,
        SoftLabels,
        SoftTargets,
        Start,
        StudentLoss,
    )
    from ensdistill.student.online import OnlineTeachers
    from ensdistill.student.sources import RowTargets, TargetSource
    from ensdistill.student.together import distill_many
    from ensdistill.student.trainer import StudentTrainer, Trained
    from ensdistill.student.trees import TreeStudent
    from ensdistill.student.validation import Validation


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
