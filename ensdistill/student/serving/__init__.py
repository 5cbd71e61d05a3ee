"""A finished student for serving: raw samples in, the data's own labels out; saved without pickle."""

from ensdistill.student.serving.base import Predictor
from ensdistill.student.serving.files import load_student
from ensdistill.student.serving.student import Student

__all__ = ["Predictor", "Student", "load_student"]
