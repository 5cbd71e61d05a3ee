"""The ensemble: members, what they are worth, and the rule that combines them.

===============  ======================================================================================
``core``         ``Ensemble``: predictions, and everything that is fitted to held-out predictions
``training``     ``Ensemble.train``: many members from one factory
``methods``      what makes its members differ: seeds, bagging, snapshots, fast geometric
``held_out``     ``train_ensemble``: members of different kinds, judged on folds of their own training rows
``stacked``      members of one architecture that predict in one call
``known``        logits that are there already, as arrays or in a cache
``storage``      an ensemble as a folder
===============  ======================================================================================
"""

from ensdistill.teachers.ensemble import Ensemble
from ensdistill.teachers.out_of_fold import train_ensemble
from ensdistill.teachers.validation import check_logits

__all__ = ["Ensemble", "check_logits", "train_ensemble"]
