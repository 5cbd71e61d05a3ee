"""Short trainings on digits, and how their models are compared."""

import functools

import torch
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.models import CNN
from ensdistill.teachers.stack import train_stack

QUICK = Optimization(steps=80, batch_size=32, learning_rate=5e-3)
SMALL = functools.partial(CNN, channels=[4, 8])
SEEDS = [11, 12, 13, 14, 15]


def train(digits, factory, seeds, **options):
    options.setdefault("optimization", QUICK)
    return train_stack(
        factory, digits.labelled.inputs, digits.labelled.labels, classes=10, seeds=seeds, **options
    )


def difference(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same_bits(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def dropped():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 10),
    )
