"""Distillation losses as functions. ``import ensdistill.functional`` costs little on top of torch.

The implementation is in :mod:`ensdistill.loss`.
"""

from ensdistill.loss.functional import *  # noqa: F403
from ensdistill.loss.functional import __all__ as __all__
