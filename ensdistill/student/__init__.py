"""The student's training."""

from ensdistill.student.trainer import StudentTrainer, Trained

__all__ = ["StudentTrainer", "Trained"]
