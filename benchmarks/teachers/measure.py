"""Training and prediction in rotation, each checked: the accuracy of all contenders has to be the same."""

from __future__ import annotations

import functools
import multiprocessing as mp
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.teachers.contenders import CONTENDERS, Case
from benchmarks.teachers.data import Task, digits, fashion
from ensdistill import Ensemble
from ensdistill.common.optimization import Optimization
from ensdistill.models import MLP

SAME_ACCURACY = 0.02  # between contenders, of the ensembles' test accuracy: other seeds move it by less


def normed_cnn(image: int = 28) -> nn.Module:
    """Two stages of convolution, batch normalisation and pooling, then one layer."""
    stages: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 16)):
        stages += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(16 * (image // 4) ** 2, 10))


def cases(quick: bool, members: int, device: str, folder: Any) -> list[Case]:
    """The networks and their tasks; a data set that is missing raises Missing."""
    mlp = functools.partial(MLP, inputs=64, hidden=[64], outputs=10)
    small = Case(digits(), mlp, "MLP 64-64-10", members, 5 if quick else 40, 64, device)
    images = fashion(1280 if quick else 10_240, folder)
    return [
        small,
        Case(images, normed_cnn, "CNN 8-16 with batch normalisation", members, 1 if quick else 3, 64, device),
    ]


def training(case: Case, rounds: int, chosen: list[str], note: Callable[[str], None]) -> dict[str, Any]:
    """Seconds and test accuracy of each contender; one that isn't installed or fails is left out with the
    reason."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    accuracy: dict[str, list[float]] = {name: [] for name in chosen}
    left_out: dict[str, str] = {}
    for seed in range(rounds + 1):  # the first warms up: it imports, compiles, allocates
        for name in chosen[seed % len(chosen) :] + chosen[: seed % len(chosen)]:
            if name in left_out:
                continue
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    answers = CONTENDERS[name](case, seed)
            except Exception as error:  # of a peer's own: it must not end the run
                left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                note(f"  {name} is left out: {left_out[name]}")
                continue
            if case.device != "cpu":
                torch.cuda.synchronize()
            if seed:
                seconds[name].append(time.perf_counter() - start)
                accuracy[name].append(float((answers.argmax(1) == case.task.test_labels).mean()))
        note(f"  round {seed} of {rounds}")
    results = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "all": seconds[name],
            "accuracy": float(np.mean(accuracy[name])),
        }
        for name in chosen
        if seconds[name]
    }
    scores = [r["accuracy"] for r in results.values()]
    return {
        "task": case.task.name,
        "model": case.model,
        "members": case.members,
        "epochs": case.epochs,
        "batch": case.batch,
        "rows": len(case.task.inputs),
        "contenders": results,
        "left_out": left_out,
        "same_accuracy": max(scores) - min(scores) <= SAME_ACCURACY,
    }


def targets(result: dict[str, Any]) -> dict[str, float]:
    """Ratios of times: above 1 is in this package's favour."""
    seconds = {name: r["seconds"] for name, r in result["contenders"].items()}
    own = seconds["ensdistill"]
    ways = [s for name, s in seconds.items() if name.startswith("ensdistill, ")]
    against = {
        "plain loop": [seconds[n] for n in ("plain loop",) if n in seconds],
        "the faster plain loop": [s for n, s in seconds.items() if n.startswith("plain loop")],
        "torchensemble": [s for n, s in seconds.items() if n.startswith("torchensemble")],
        "the fastest of its own ways": ways,
    }
    return {name: min(values) / own for name, values in against.items() if values}


def prediction(case: Case, rounds: int, batches: tuple[int, ...] = (1, 64, 1024)) -> list[dict[str, Any]]:
    """Milliseconds for all members' logits [K, N, C], stacked and one by one."""
    task = case.task
    steps = Optimization(steps=2, batch_size=8)
    few = (task.inputs[:200], task.labels[:200])
    ensemble = Ensemble.train(
        case.factory, few, members=case.members, optimization=steps, way="auto", device=case.device
    )
    found = []
    for size in batches:
        x = np.resize(task.test_inputs, (size, *task.test_inputs.shape[1:]))
        times: dict[str, list[float]] = {"stacked": [], "one_by_one": []}
        for i in range(rounds + 1):
            for way in times:
                start = time.perf_counter()
                ensemble.predict_logits(x, way=way)  # type: ignore[arg-type]
                if i:
                    times[way].append(1e3 * (time.perf_counter() - start))
        found.append(
            {
                "task": task.name,
                "model": case.model,
                "rows": size,
                **{w: statistics.median(t) for w, t in times.items()},
            }
        )
    return found


def memory(case: Case, way: str) -> float:
    """Bytes of memory for each further member of a training: the slope of the peak between K and 3 K members,
    each in a new process (Linux)."""
    peaks = []
    for members in (case.members, 3 * case.members):
        context = mp.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_peak, args=(sender, case.task, case.factory, members, case.batch, way)
        )
        process.start()
        sender.close()
        try:
            peaks.append(receiver.recv())
        finally:
            process.join()
    return (peaks[1] - peaks[0]) / (2 * case.members)


def _peak(
    sender: Any, task: Task, factory: Callable[[], nn.Module], members: int, batch: int, way: str
) -> None:
    few, warm = Optimization(steps=8, batch_size=batch), Optimization(steps=1, batch_size=2)
    Ensemble.train(
        factory, (task.inputs, task.labels), members=1, optimization=warm, way="one_by_one"
    )  # loads each library once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    Ensemble.train(factory, (task.inputs, task.labels), members=members, optimization=few, way=way)  # type: ignore[arg-type]
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    sender.send(int(peak.split()[1]) * 1024)
    sender.close()
