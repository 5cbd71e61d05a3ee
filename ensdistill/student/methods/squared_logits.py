"""The squared distance of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensdistill.student.methods.method import Method
from ensdistill.student.methods.teachers import centred, mean_logits, mean_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class SquaredLogits(Method):
    """The mean over classes of (s_c - z_c)², of the student's logits s and the members' mean logits z.

    Rows of both have the mean 0 first: a constant changes no probability, and a cache may not keep it. Half
    of it is the limit of T² KL at high temperatures (Hinton et al., 2015, equation 4). Classes that a member
    rules out (``-inf``) have no part.

    References
    ----------
    Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014.

    Examples
    --------
    >>> SquaredLogits().takes_mixture
    False
    """

    takes_mixture = False  # a mixture of probabilities has no mean logits

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        teacher, finite = mean_logits(targets)
        squares = (centred(outputs, finite) - teacher).square().sum(-1)
        return mean_of(squares / finite.sum(-1).clamp(min=1), batch.weights)
