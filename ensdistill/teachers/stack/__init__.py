"""Training of members: ``train_stack`` for many models of one architecture, ``train_trajectory`` for one
along its way."""

from ensdistill.teachers.stack.label_loss import LabelLoss
from ensdistill.teachers.stack.loop import BLOCK
from ensdistill.teachers.stack.status import Status, Watch
from ensdistill.teachers.stack.strategies import STACK_FROM, Way
from ensdistill.teachers.stack.train import train_stack, train_trajectory

__all__ = ["BLOCK", "STACK_FROM", "LabelLoss", "Status", "Watch", "Way", "train_stack", "train_trajectory"]
