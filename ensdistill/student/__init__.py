"""The student's training: the trainer, and the losses that it takes."""

from ensdistill.student.batches import Batch
from ensdistill.student.methods import HardLabels, SoftTargets, StudentLoss
from ensdistill.student.trainer import StudentTrainer, Trained

__all__ = ["Batch", "HardLabels", "SoftTargets", "StudentLoss", "StudentTrainer", "Trained"]
