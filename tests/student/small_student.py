"""The smallest training of a student that several test files share: 150 rows of 16 numbers, five classes."""

from functools import partial

import numpy as np
import torch
from torch import nn

from ensdistill import Ensemble, Rows, cache_targets
from ensdistill.models import MLP

STUDENT = partial(MLP, 16, [8], 5)
X = np.random.default_rng(0).normal(size=(150, 16)).astype(np.float32)
ROWS = Rows(X, np.arange(150), np.arange(150) % 5)


def small_cache(folder):
    """The targets of one linear member for all rows."""
    torch.manual_seed(0)
    member = nn.Linear(16, 5).requires_grad_(False)
    return cache_targets(Ensemble.from_members([member]), ROWS, folder / "targets")
