"""The command line of ``ensdistill bench`` and of ``python -m benchmarks kernels``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ensdistill.bench import machine, suite
from ensdistill.bench.cases import Case
from ensdistill.bench.check import WrongOutput
from ensdistill.bench.contenders import Peers
from ensdistill.bench.cuda import Cuda
from ensdistill.bench.measure import Cpu
from ensdistill.bench.run import run
from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, whole_number

# The truth holds all members of a row in float64, and plain torch code, the measure of all others, rounds the
# more the more there are.
_MOST_MEMBERS = 32
DESCRIPTION = """\
Times ensdistill's distillation losses, forward+backward and forward alone,
against
  eager          plain torch code (kl_div of probabilities or
                 log-probabilities, cross_entropy: the fastest)
  compile        torch.compile of it; on a GPU also with max-autotune
  specification  impl="compile", on some shapes
                 (impl="reference" is eager code, so it isn't timed besides)
  floor          a loop that reads every input once and writes the gradient's
                 buffer once; on a GPU a copy of as many bytes
A checkout's `python -m benchmarks kernels` adds Liger-Kernel, and quack's cross
entropy (which reads no teacher), on a GPU.

Shapes: C = {classes};
K = {members}; forward KL of {targets};
on a CPU {halves};
on a GPU all of these, and uint8 codes with a bfloat16 student.
Then other divergences, top-k targets, hard labels, feature maps, small batches,
by-products, multi-label losses, and last layers.

All run in rotation in one process; medians count. Before that, every loss and
gradient is checked against float64: one of ours that is further off than plain
torch code ends the run, others are left out. The result is written after each
shape.

x floor is the gain that is left (1 is the end), x eager and x compile the gain
so far. Keep the machine quiet: other programs take memory bandwidth from all
of them.
"""
EPILOG = """\
examples:
  {prog}
      everything, about a quarter of an hour on 2 cores
  {prog} --quick
      9 shapes, under two minutes; on a GPU 16, under five
  {prog} --resume
      go on with an interrupted run
  {prog} --classes 1000 --members 1 4 --targets float32 uint8
"""


def parser(prog: str) -> Parser:
    """The options."""
    p = Parser(
        prog=prog,
        description=DESCRIPTION.format(**_grid()),
        epilog=EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--quick", action="store_true", help="few shapes")
    p.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="default: cuda where there is a GPU and its kernels are built",
    )
    p.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help=f"CPU threads for all contenders (default: torch's, here {torch.get_num_threads()})",
    )
    p.add_argument(
        "--classes",
        type=_positive,
        nargs="+",
        metavar="C",
        help="a grid of dense targets only; default: all of the suite",
    )
    p.add_argument(
        "--members", type=_members, nargs="+", metavar="K", help=f"likewise; at most {_MOST_MEMBERS}"
    )
    p.add_argument(
        "--targets",
        nargs="+",
        choices=suite.TARGETS,
        metavar="KIND",
        help=f"likewise; of {', '.join(suite.TARGETS)}; uint8 codes meet a float32 student",
    )
    p.add_argument(
        "--data-mib",
        type=_positive,
        metavar="MIB",
        help="inputs and gradient of a shape (default: four times the last-level cache)",
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the result, .json; a .png goes beside it")
    p.add_argument(
        "--resume",
        action="store_true",
        help="keep the measurements in the result file, if machine, commit and settings are the same",
    )
    return p


def _grid() -> dict[str, str]:
    """The suite's cases, in words."""

    def words(values: Sequence[object]) -> str:
        return ", ".join(map(str, values))

    halves = (f"{name} with K = {words(ks)} only" for name, ks in suite.HALF_MEMBERS.items())
    return {
        "classes": words(suite.CLASSES),
        "members": words(suite.MEMBERS),
        "targets": words(suite.TARGETS),
        "halves": " and ".join(halves),
    }


def _positive(text: str) -> int:
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1; got {text}")
    return value


def _members(text: str) -> int:
    value = _positive(text)
    if value > _MOST_MEMBERS:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_MEMBERS} members; got {text}")
    return value


def main(
    arguments: Sequence[str],
    prog: str = "ensdistill bench",
    folder: Path | None = None,
    peers: Sequence[Peers] = (),
) -> int:
    """Run the benchmark, with other libraries as ``peers``; return the exit status.

    The result goes to ``folder``, by default the current one.
    """
    options = parser(prog).parse(arguments)
    notes = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    screen = Console(highlight=False)
    screen.width = max(
        screen.width, 140
    )  # a narrow terminal breaks the lines, which is better than leaving columns out
    # Found out now, not after a quarter of an hour.
    try:
        from ensdistill.bench.plot import draw
        from ensdistill.bench.table import as_text
    except ImportError as error:
        notes.print(f"{error}: pip install 'ensdistill[report]'")
        return 1
    if options.out is not None and options.out.suffix != ".json":
        notes.print(f"--out: expected a name that ends in .json; got {options.out}")
        return 2
    if options.device == "cuda" and not _has_gpu():
        notes.print(
            "--device: expected cpu; cuda needs a GPU and ensdistill's CUDA kernels (see `ensdistill info`)"
        )
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    place = Cuda() if (options.device or ("cuda" if _has_gpu() else "cpu")) == "cuda" else Cpu()
    if options.data_mib:
        place.data_bytes = options.data_mib << 20
    source = machine.describe_source(place.device)
    if source["library_is_older"]:
        # By date only, which a checkout also changes: a warning here, a mark in the result.
        notes.print(
            "warning: csrc/ is newer than the native library; if it was changed, build first (make setup): "
            "these are old numbers"
        )
    name = machine.result_name(machine.describe_machine(place.device), source) + _variant(options)
    out = options.out or (folder or Path()) / f"{'' if folder else 'ensdistill-bench-'}{name}.json"
    progress = (lambda text: None) if manner().quiet else notes.print
    try:
        result = run(
            _cases(options, place), place, out, resume=options.resume, peers=peers, progress=progress
        )
    except (WrongOutput, ValueError) as error:
        notes.print(f"{'wrong output' if isinstance(error, WrongOutput) else 'error'}: {error}")
        return 1
    except KeyboardInterrupt:
        notes.print(
            f"Stopped. The measurements so far are in {out}; the same command with --resume goes on from "
            "there."
        )
        return 130
    screen.print(as_text(result))
    draw(result, out.with_suffix(".png"))
    progress(f"{out}\n{out.with_suffix('.png')}")
    return 0


def _cases(options: argparse.Namespace, place: Cpu | Cuda) -> list[Case]:
    if options.classes or options.members or options.targets:
        return suite.grid(
            place.data_bytes,
            options.classes or suite.CLASSES,
            options.members or suite.MEMBERS,
            options.targets or suite.TARGETS,
        )
    return (suite.quick if options.quick else suite.full)(place.data_bytes, place.device.type == "cuda")


def _has_gpu() -> bool:
    from ensdistill.loss.ops import build_info

    return torch.cuda.is_available() and bool(build_info()["cuda"]["built"])


def _variant(options: argparse.Namespace) -> str:
    """A part must not take the whole's place."""
    if options.classes or options.members or options.targets or options.data_mib or options.threads:
        return "-part"
    return "-quick" if options.quick else ""
