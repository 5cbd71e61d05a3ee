"""``python torchdistill_script.py FOLDER``: a student distilled by torchdistill's KD loss and training box.

In an environment that has torchdistill, and this repository on its path for the student's class. FOLDER holds
arrays.npz (inputs, labels, logits of the teacher, test) and settings.json; probabilities.npy is written.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class StoredTeacher(nn.Module):
    """Looks up the ensemble's logits [N, C]: any ensemble, also one of trees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        return self.logits[places]


class Numbered(torch.utils.data.Dataset):
    """Samples, labels and positions, as torchdistill takes them."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Any, Any, Any]:
        return self.inputs[place], self.labels[place], {"place": place}


class WithoutLabels(nn.Module):
    """torchdistill's KD loss; in a batch without any label its soft part alone, since its hard part would be
    0/0."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Any, teacher: Any, targets: torch.Tensor) -> torch.Tensor:
        if bool((targets >= 0).any()):
            return self.loss(student, teacher, targets)
        return self.loss.beta * self.loss.temperature**2 * self.loss(student, teacher)


def declare_operators() -> None:
    """Import torchvision, also beside another torch than that it was built for: the operators that it lacks
    there, none of which distillation calls, are declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if found is None:
                raise
            library.define(f"{found[1]}(Tensor input) -> Tensor")
            KEPT.append(library)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


KEPT: list[Any] = []  # a library's declarations end with it


def main(folder: Path) -> None:
    declare_operators()
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.interfaces.registry import register_forward_proc_func
    from torchdistill.losses.mid_level import KDLoss

    @register_forward_proc_func
    def forward_places(model: Any, batch: Any, targets: Any = None, supp: Any = None, **_: Any) -> Any:
        return model(supp["place"])

    settings = json.loads((folder / "settings.json").read_text())
    arrays = np.load(folder / "arrays.npz", allow_pickle=False)
    inputs, labels, logits, test = (
        torch.from_numpy(arrays[k]) for k in ("inputs", "labels", "logits", "test")
    )
    torch.manual_seed(settings["seed"])
    torch.set_num_threads(1)
    module, _, name = settings["model"]["class_path"].rpartition(".")
    student = getattr(importlib.import_module(module), name)(**settings["model"]["init_args"])
    epochs = max(1, round(settings["steps"] * settings["batch_size"] / len(labels)))
    loss = KDLoss(
        *(
            ".",
            "output",
            ".",
            "output",
        ),  # the student's logits and the teacher's: outputs of the whole models
        temperature=settings["temperature"],
        alpha=settings["label_weight"],
    )
    loader = {
        "dataset_id": "train",
        "requires_supp": False,  # the data set has positions already
        "sampler": {"class_or_func": torch.utils.data.RandomSampler},
        "kwargs": {"batch_size": settings["batch_size"]},
    }
    training = {
        "num_epochs": epochs,
        "train_data_loader": loader,
        "teacher": {"forward_proc": "forward_places", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": settings["rate"]}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": WithoutLabels(loss), "weight": 1.0}}},
        },
    }
    box = get_distillation_box(
        StoredTeacher(logits), student, {"train": Numbered(inputs, labels)}, training, torch.device("cpu"),
        None, False, 1,
    )  # fmt: skip
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for batch, targets, supp in box.train_data_loader:
            box.pre_forward_process()
            box.post_forward_process(box.forward_process(batch, targets, supp))
        box.post_epoch_process()
    student.eval()
    with torch.no_grad():
        found = torch.cat([student(part) for part in test.split(1024)])
    np.save(folder / "probabilities.npy", found.double().softmax(1).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
