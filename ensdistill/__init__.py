"""Any ensemble in, one small fast model out, with proof of how much of the ensemble it kept.

    teachers ──► cache ──► student ──► report

The names below are loaded when they are first used: ``import ensdistill`` costs nothing, and a part that
needs no torch loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__: str  # of the installed package's metadata

_HOMES = {
    "teachers": ("Ensemble", "train_ensemble"),
    "teachers.members": (
        "TorchMember",
        "SklearnMember",
        "BoostedMember",
        "OnnxMember",
        "CallableMember",
        "ArrayMember",
    ),
    "teachers.recipes": ("TorchMembers", "SklearnMembers"),
    "common.optimization": ("Optimization",),
    "common.optimizers": ("ParameterGroup", "StudentOptimization"),
    "data": ("Rows", "Split"),
    "data.transfer": ("TransferSet",),
    "cache": ("TargetCache", "cache_targets"),
    "loss.targets": ("EnsembleLogits", "QuantizedLogits", "LogProbs", "Probs", "TopK", "Counts"),
    "loss.functional": ("distillation_loss", "RowStatistics"),
    "loss.linear": ("linear_distillation_loss",),
    "loss.encoders": ("quantize_logits", "sample_counts", "top_k_targets"),
    "loss.modules": ("DistillationLoss",),
    "student": ("StudentTrainer",),
    "student.shrink": ("shrink",),
    "student.serving": ("Student",),
    "job.serving": ("load_student",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from ensdistill.cache import TargetCache, cache_targets
    from ensdistill.common.optimization import Optimization
    from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
    from ensdistill.data import Rows, Split
    from ensdistill.data.transfer import TransferSet
    from ensdistill.job.serving import load_student
    from ensdistill.loss.encoders import quantize_logits, sample_counts, top_k_targets
    from ensdistill.loss.functional import RowStatistics, distillation_loss
    from ensdistill.loss.linear import linear_distillation_loss
    from ensdistill.loss.modules import DistillationLoss
    from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, QuantizedLogits, TopK
    from ensdistill.student import StudentTrainer
    from ensdistill.student.serving import Student
    from ensdistill.student.shrink import shrink
    from ensdistill.teachers import Ensemble, train_ensemble
    from ensdistill.teachers.members import (
        ArrayMember,
        BoostedMember,
        CallableMember,
        OnnxMember,
        SklearnMember,
        TorchMember,
    )
    from ensdistill.teachers.recipes import SklearnMembers, TorchMembers


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("ensdistill")
        except metadata.PackageNotFoundError:  # a copy of the source that was never installed
            return "0+unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'ensdistill' has no attribute {name!r}")
    return getattr(import_module(f"ensdistill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
