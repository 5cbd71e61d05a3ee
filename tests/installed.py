"""Try an installed ensdistill, with its core dependencies alone: ``python tests/installed.py``.

Wheels and source distributions are tried with it, by each Python and with each torch: the op with its gradient,
the encoders, a cache with its native reader, a student, the estimator, and the command line. Where the extras
``table`` and ``report`` are installed, a job from a CSV file is run, too.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

import ensdistill
from ensdistill import (
    ArrayMember,
    Ensemble,
    Optimization,
    Rows,
    StudentTrainer,
    TargetCache,
    cache_targets,
    distillation_loss,
    quantize_logits,
)
from ensdistill.loss.ops import build_info
from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def check_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    student, targets = (torch.randn(*shape, generator=generator) for shape in ((7, 33), (3, 7, 33)))
    found, expected = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = distillation_loss(found, targets, temperature=2.0)
    p = (targets.double() / 2).softmax(-1).mean(0)
    truth = 4 * (p * (p.log() - (expected / 2).log_softmax(-1))).sum(-1).mean()
    loss.backward(), truth.backward()
    torch.testing.assert_close(loss.double(), truth, **CLOSE)
    torch.testing.assert_close(found.grad.double(), expected.grad, **CLOSE)
    codes, _ = quantize_logits(targets)
    coarse = distillation_loss(student, codes, temperature=2.0)
    torch.testing.assert_close(coarse.double(), truth.detach(), rtol=0.01, atol=1e-3)


def check_cache_and_student(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    labels = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    scores = np.stack([x[:, 0] + x[:, 1], x[:, 0] + x[:, 1] + 0.1 * x[:, 2]]) * 3
    logits = np.stack([-scores, scores], -1).astype(np.float32)
    members = [ArrayMember(x, logits=z, name=f"m{k}", classes=("no", "yes")) for k, z in enumerate(logits)]
    rows = Rows(x, np.arange(300), labels)
    cache_targets(Ensemble.from_members(members), rows, folder / "targets")
    cache = TargetCache.open(folder / "targets", check="full")
    np.testing.assert_allclose(cache.gather_logits(rows.uids), logits, atol=0.1)
    student = StudentTrainer(Optimization(steps=200)).distill(lambda: MLP(4, [16], 2), rows, cache).module
    answers = student(torch.from_numpy(x)).argmax(1).numpy()
    assert (answers == labels).mean() > 0.9, answers


JOB = """
name: table
seeds: 1
workers: 1
data: {class_path: Table, init_args: {path: rows.csv, target: label}}
teachers:
  folds: 2
  members:
    - {class_path: SklearnMembers, init_args: {estimator: {class_path: sklearn.linear_model.LogisticRegression}}}
    - {class_path: SklearnMembers, init_args: {estimator: {class_path: sklearn.naive_bayes.GaussianNB}}}
distill: {folds: 2, students: {small: {model: MLP, optimization: {steps: 30, learning_rate: 0.02}}}}
"""


def check_estimator() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    y = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    members = [estimator.fit(x[:100], y[:100]) for estimator in (LogisticRegression(), GaussianNB())]
    model = DistilledClassifier(members, prefit=True, synthetic=None, optimization=Optimization(200))
    model.fit(x[100:200], y[100:200])
    assert model.score(x[200:], y[200:]) > 0.8


def command_line(*words: str, folder: Path) -> str:
    command = [sys.executable, "-m", "ensdistill", *words]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


def check_command_line(folder: Path) -> None:
    assert command_line("--version", folder=folder) == f"ensdistill {ensdistill.__version__}\n"
    assert "ensdistill run DATA --target" in command_line("--help", folder=folder)
    if find_spec("pandas") is None or find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return
    x = np.random.default_rng(0).normal(size=(200, 2)).round(3)
    rows = [f"{a},{b},{'yes' if a + b > 0 else 'no'}" for a, b in x]
    (folder / "rows.csv").write_text("\n".join(["a,b,label", *rows]))
    (folder / "table.yaml").write_text(JOB)
    command_line("run", "table.yaml", "--quiet", folder=folder)
    answers = command_line("predict", "runs/table", "rows.csv", folder=folder).splitlines()
    assert len(answers) == 201, answers[:3]


def main() -> None:
    home = Path(ensdistill.__file__).resolve()
    packages = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    assert any(place in home.parents for place in packages), f"{home} is not the installed package"
    check_loss()
    check_estimator()
    with tempfile.TemporaryDirectory() as folder:
        check_cache_and_student(Path(folder))
        check_command_line(Path(folder))
    info = build_info()
    print(
        f"ensdistill {ensdistill.__version__}, Python",
        sys.version.split()[0],
        json.dumps(info["torch"]),
        json.dumps(info["cpu"]),
    )


if __name__ == "__main__":
    main()
