"""Students that tests export, and frames with all that a table may hold."""

import numpy as np
import onnx_registry  # noqa: F401
import pandas as pd
import torch

from ensdistill.data.samples import as_samples, form
from ensdistill.student.serving import Student
from ensdistill.teachers.members import Preprocessed, TorchMember


def frame(rows=120, seed=0, gaps=True):
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "age": random.integers(18, 90, rows),
            "income": random.lognormal(10, 1, rows).round(2),
            "account": 10**12 + random.integers(0, 10**6, rows),
            "debt": np.where(random.random(rows) < 0.3, np.nan, random.normal(size=rows)),
            "own": random.random(rows) < 0.5,
            "city": random.choice(["Rom", "Oslo", "Bern"], rows),
            "job": random.choice(["clerk", "nurse", None if gaps else "cook"], rows),
            "street": random.choice([f"street {i}" for i in range(40)], rows),
            "same": np.ones(rows),
        }
    )
    table.loc[:2, "city"] = "Ulm"  # too rare for a column of its own
    return table


def torch_member(factory, preprocess=None, output="logits", **more):
    torch.manual_seed(0)
    member = TorchMember(factory().eval(), name="student", factory=None, output=output, **more)
    return member if preprocess is None else Preprocessed(member, preprocess)


def student_of(member, samples, labels=("a", "b", "c"), **more):
    return Student(member, [str(label) for label in labels], labels, form(as_samples(samples)), **more)
