"""Any ensemble in, one small fast model out, with proof of how much of the ensemble it kept.

    teachers ──► cache ──► student ──► report

The names below are loaded when they are first used: ``import ensdistill`` costs nothing, and a part that needs no torch loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ensemble": ("Ensemble", "train_ensemble"),
    "members": ("TorchMember", "SklearnMember", "BoostedMember", "OnnxMember", "CallableMember", "ArrayMember"),
    "specs": ("TorchMembers", "SklearnMembers"),
    "optimization": ("Optimization",),
    "data": ("Rows", "Split"),
    "transfer": ("TransferSet",),
    "cache": ("TargetCache", "cache_targets"),
    "targets": ("EnsembleLogits", "QuantizedLogits", "LogProbs", "Probs", "TopK", "Counts"),
    "functional": ("distillation_loss", "RowStatistics"),
    "linear": ("linear_distillation_loss",),
    "encoders": ("quantize_logits", "sample_counts", "top_k_targets"),
    "losses": ("DistillationLoss",),
    "student": ("StudentTrainer",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from ensdistill.cache import TargetCache, cache_targets
    from ensdistill.data import Rows, Split
    from ensdistill.encoders import quantize_logits, sample_counts, top_k_targets
    from ensdistill.ensemble import Ensemble, train_ensemble
    from ensdistill.functional import RowStatistics, distillation_loss
    from ensdistill.linear import linear_distillation_loss
    from ensdistill.losses import DistillationLoss
    from ensdistill.members import ArrayMember, BoostedMember, CallableMember, OnnxMember, SklearnMember, TorchMember
    from ensdistill.optimization import Optimization
    from ensdistill.specs import SklearnMembers, TorchMembers
    from ensdistill.student import StudentTrainer
    from ensdistill.targets import Counts, EnsembleLogits, LogProbs, Probs, QuantizedLogits, TopK
    from ensdistill.transfer import TransferSet


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ensdistill' has no attribute {name!r}")
    return getattr(import_module(f"ensdistill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
