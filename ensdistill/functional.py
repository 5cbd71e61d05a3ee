"""Distillation losses as functions. ``import ensdistill.functional`` costs little on top of torch.

The implementation is in :mod:`ensdistill.loss`.
"""

from ensdistill.loss.functional import *  # noqa: F403
from ensdistill.loss.functional import __all__ as _softmax
from ensdistill.loss.gaussian import gaussian_distillation_loss as gaussian_distillation_loss
from ensdistill.loss.gaussian import gaussian_moments as gaussian_moments
from ensdistill.loss.linear import linear_distillation_loss as linear_distillation_loss
from ensdistill.loss.multilabel import multilabel_distillation_loss as multilabel_distillation_loss

__all__ = [
    *_softmax,
    "gaussian_distillation_loss",
    "gaussian_moments",
    "linear_distillation_loss",
    "multilabel_distillation_loss",
]
