"""The start of a process: libraries that take a second to import are imported where they are needed alone."""

import os
import subprocess
import sys

import pytest

TRAINING = """
import functools
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
from ensdistill.data import Digits
from ensdistill.models import MLP
from ensdistill.student import StudentTrainer
from ensdistill.student.automatic import usual_steps
from ensdistill.teachers import Ensemble

rows, small = Digits(labelled=50).split(0).labelled, functools.partial(MLP, 64, [4], 10)
settings, groups = {"steps": 4, "batch_size": 8}, (ParameterGroup("*.bias", weight_decay=0.0),)
for optimization in (Optimization(**settings), StudentOptimization(**settings, groups=groups)):
    StudentTrainer(optimization).direct(small, rows, classes=10)
usual_steps(small(), rows, None, 8)
for way in ("one_by_one", "side_by_side", "stacked"):
    Ensemble.train([small], rows, members=2, optimization=Optimization(**settings), way=way)
"""


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        (
            "from ensdistill.student import StudentTrainer",
            {"sklearn", "pandas", "scipy.optimize", "torch._dynamo"},
        ),
        (TRAINING, {"torch._dynamo"}),  # torch's compiler
    ],
    ids=["the student's trainer", "a training"],
)
def test_a_library_is_not_imported(program, unwanted):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert imported & unwanted == set()
