"""One member of each kind that can be saved, on rows of digits."""

import functools

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC

from ensdistill.models import MLP
from ensdistill.teachers.members import ArrayMember, SklearnMember, TorchMember


def members(rows):
    x, y = rows
    return [
        TorchMember(
            MLP(64, [8]),
            name="mlp",
            classes=[str(i) for i in range(10)],
            factory=functools.partial(MLP, inputs=64, hidden=[8]),
        ),
        SklearnMember(SVC(C=3).fit(x, y), name="svc"),
        SklearnMember(ExtraTreesClassifier(5, random_state=0).fit(x, y), name="trees", smoothing=0.01),
        SklearnMember(
            KernelRidge(kernel="rbf").fit(x, np.eye(10)[y]), classes=[str(i) for i in range(10)], name="ridge"
        ),
        ArrayMember(x, logits=np.random.default_rng(0).normal(size=(200, 10)), name="array"),
    ]
