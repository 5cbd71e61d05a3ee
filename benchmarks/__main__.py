"""``python -m benchmarks``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks import predict
from benchmarks.kernels import PEERS, page
from ensdistill.cli import bench

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("teachers", "cache", "data", "student", "transfer", "quality", "auto", "methods", "tokens")
USAGE = """\
usage: python -m benchmarks COMMAND

  kernels [OPTIONS]      time the losses; `kernels --help` explains. `ensdistill bench` with more peers, into benchmarks/results
  teachers [OPTIONS]     time the training of members, and measure the gain of choosing among them; `teachers --help` explains
  cache [OPTIONS]        time the target cache against other stores; `cache --help` explains. Into benchmarks/results
  data [OPTIONS]         time samples from arrays, files and images through cache and student; `data --help` explains
  student [OPTIONS]      time the student's step by each source of targets, and against a bare loop; `student --help` explains
  transfer [OPTIONS]     compare kinds of synthetic rows for data without a pool; `transfer --help` explains. Into benchmarks/results
  quality [OPTIONS]      how much of an ensemble students keep on real data, beside other tools; `quality --help` explains
  auto [OPTIONS]         the default ensemble and that of `teachers: auto` beside their members on five tables; `auto --help` explains
  methods [OPTIONS]      compare the distillation methods on three tables, one cache for each; `methods --help` explains
  tokens [OPTIONS]       cache language models' targets, and train from them beside online teachers; `tokens --help` explains
  predict                an H100's expected times, computed from the kernels' plans, into benchmarks/PREDICTIONS.md
  frontier               the picture of quality against size in docs/, from the results of `quality` in benchmarks/results
  page [RESULT.json]     put a result's tables into docs/benchmarks.md and README.md (by default the result that README.md names)
"""


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["kernels"]:
        return bench.main(words[1:], "python -m benchmarks kernels", root / "benchmarks" / "results", PEERS)
    if words and words[0] in OTHERS:
        command = import_module(f"benchmarks.{words[0]}.command")
        return int(command.main(words[1:], root / "benchmarks" / "results"))
    if words[:1] == ["page"] and len(words) <= 2 and not words[-1].startswith("-"):
        try:
            result = (
                Path(words[1])
                if len(words) == 2
                else root / page.named((root / "README.md").read_text(encoding="utf-8"))
            )
            page.rewrite(root, result)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{', '.join(page.PAGES)}: the tables of {result}")
        return 0
    if words == ["frontier"]:
        picture = root / "docs" / "images" / "frontier.svg"
        found = import_module("benchmarks.quality.frontier").rewrite(root / "benchmarks" / "results", picture)
        print(f"{picture}: {', '.join(panel.name for panel in found)}")
        return 0
    if words == ["predict"]:
        predict.rewrite(root / "benchmarks" / "PREDICTIONS.md")
        print(f"{root / 'benchmarks' / 'PREDICTIONS.md'}: the table of this version's plans")
        return 0
    help_wanted = words[:1] in (["-h"], ["--help"])
    print(USAGE, end="", file=sys.stdout if help_wanted else sys.stderr)
    return 0 if help_wanted else 2


if __name__ == "__main__":
    sys.exit(main())
