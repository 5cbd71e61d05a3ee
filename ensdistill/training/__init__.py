"""Training of members: ``train_stack`` for many models of one architecture, ``train_trajectory`` for one along its way."""

from ensdistill.training.job import BLOCK
from ensdistill.training.stack import STACK_FROM, Way, train_stack, train_trajectory
from ensdistill.training.status import Status, Watch

__all__ = ["BLOCK", "STACK_FROM", "Status", "Watch", "Way", "train_stack", "train_trajectory"]
