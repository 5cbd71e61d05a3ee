"""Training of members: ``train_stack`` for many models of one architecture, ``train_trajectory`` for one along its way."""

from ensdistill.training.job import BLOCK
from ensdistill.training.stack import train_stack, train_trajectory
from ensdistill.training.status import Status, Watch
from ensdistill.training.ways import STACK_FROM, Way

__all__ = ["BLOCK", "STACK_FROM", "Status", "Watch", "Way", "train_stack", "train_trajectory"]
