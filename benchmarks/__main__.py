"""``python -m benchmarks``: see ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import kernels, machine
from ensdistill.files import write_json

RESULTS = machine.ROOT / "benchmarks" / "results"

_KERNELS_HELP = """\
Times distillation_loss, forward+backward and forward alone, against
  eager    plain torch code (up to 100 classes also impl="reference"; the faster of the two)
  compile  torch.compile of it (up to 100 classes also impl="compile"; the faster of the two)
  floor    a loop that reads every input once and writes the gradient's buffer once

All run in rotation in one process; medians count. Before that, every loss and gradient is
checked against float64: one that is further off than plain torch code ends the run.

x floor is what is left to gain (1 is the end), x eager and x compile what is gained already.
Keep the machine quiet: whatever else runs takes memory bandwidth from all of them.
"""

_KERNELS_EXAMPLES = """\
examples:
  python -m benchmarks kernels                      all shapes, about 10 minutes on 2 cores
  python -m benchmarks kernels --quick              6 shapes, under two minutes
  python -m benchmarks kernels --classes 1000 --members 1 4 --dtypes float32 uint8
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure ensdistill on this machine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    k = commands.add_parser(
        "kernels",
        help="the fused loss against eager torch, torch.compile and the memory's speed",
        description=_KERNELS_HELP,
        epilog=_KERNELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    k.add_argument("--quick", action="store_true", help="few shapes, float32 only")
    k.add_argument(
        "--threads", type=_positive, metavar="N", help=f"threads for everybody (default: torch's, here {torch.get_num_threads()})"
    )
    k.add_argument("--classes", type=_positive, nargs="+", metavar="C", help=f"default: {' '.join(map(str, kernels.CLASSES))}")
    k.add_argument("--members", type=_positive, nargs="+", metavar="K", help=f"default: {' '.join(map(str, kernels.MEMBERS))}")
    k.add_argument("--dtypes", nargs="+", choices=kernels.DTYPES, help="of the targets; uint8 codes meet a float32 student (default: all)")
    k.add_argument(
        "--data-mib", type=_positive, metavar="MIB", help="inputs and gradient of a shape (default: four times the last-level cache)"
    )
    k.add_argument(
        "--out", type=Path, metavar="FILE", help="the result, .json; a .png goes beside it (default: benchmarks/results/DEVICE-COMMIT.json)"
    )
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1; got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit status."""
    options = parser().parse_args(arguments)
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    # Found out now, not after ten minutes.
    try:
        from benchmarks.plot import draw
        from benchmarks.table import print_result
    except ImportError as error:
        notes.print(f"{error}: pip install 'ensdistill\\[report]'")
        return 1
    if options.out is not None and options.out.suffix != ".json":
        notes.print(f"--out: expected a name that ends in .json; got {options.out}")
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    if machine.describe_source()["library_is_older"]:
        # By date only, which a checkout also changes: a warning here, a mark in the result.
        notes.print("warning: csrc/ is newer than the native library; if it was changed, build first (make setup): these are old numbers")
    cases = kernels.make_cases(
        options.classes or (kernels.QUICK_CLASSES if options.quick else kernels.CLASSES),
        options.members or kernels.MEMBERS,
        options.dtypes or (kernels.QUICK_DTYPES if options.quick else kernels.DTYPES),
        options.data_mib << 20 if options.data_mib else kernels.default_data_bytes(),
    )
    try:
        result = kernels.run(cases, progress=notes.print)
    except kernels.WrongOutput as error:
        notes.print(f"wrong output: {error}")
        return 1
    print_result(result, screen)
    out = options.out or RESULTS / (machine.result_name(result["machine"], result["source"]) + _variant(options) + ".json")
    write_json(out, result)
    draw(result, out.with_suffix(".png"))
    notes.print(f"{out}\n{out.with_suffix('.png')}")
    return 0


def _variant(options: argparse.Namespace) -> str:
    """A part must not take the whole's place."""
    if options.classes or options.members or options.dtypes or options.data_mib or options.threads:
        return "-part"
    return "-quick" if options.quick else ""


if __name__ == "__main__":
    sys.exit(main())
