"""``python -m benchmarks``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import predict
from benchmarks.kernels import PEERS, page
from ensdistill.cli import bench

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
usage: python -m benchmarks COMMAND

  kernels [OPTIONS]      time the losses; `kernels --help` explains. `ensdistill bench` with more peers, into benchmarks/results
  teachers [OPTIONS]     time the training of members, and measure the gain of choosing among them; `teachers --help` explains
  cache [OPTIONS]        time the target cache against other stores; `cache --help` explains. Into benchmarks/results
  data [OPTIONS]         time samples from arrays, files and images through cache and student; `data --help` explains
  student [OPTIONS]      time the student's step by each source of targets, and against a bare loop; `student --help` explains
  transfer [OPTIONS]     compare kinds of synthetic rows for data without a pool; `transfer --help` explains. Into benchmarks/results
  predict                an H100's expected times, computed from the kernels' plans, into benchmarks/PREDICTIONS.md
  page [RESULT.json]     put a result's tables into docs/benchmarks.md and README.md (by default the result that README.md names)
"""


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["kernels"]:
        return bench.main(words[1:], "python -m benchmarks kernels", root / "benchmarks" / "results", PEERS)
    if words[:1] == ["teachers"]:
        from benchmarks.teachers.command import main as teachers

        return teachers(words[1:], root / "benchmarks" / "results")
    if words[:1] == ["cache"]:
        from benchmarks.cache.command import main as cache

        return cache(words[1:], root / "benchmarks" / "results")
    if words[:1] == ["data"]:
        from benchmarks.data.command import main as data

        return data(words[1:], root / "benchmarks" / "results")
    if words[:1] == ["student"]:
        from benchmarks.student.command import main as student

        return student(words[1:], root / "benchmarks" / "results")
    if words[:1] == ["transfer"]:
        from benchmarks.transfer.command import main as transfer

        return transfer(words[1:], root / "benchmarks" / "results")
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
    if words == ["predict"]:
        predict.rewrite(root / "benchmarks" / "PREDICTIONS.md")
        print(f"{root / 'benchmarks' / 'PREDICTIONS.md'}: the table of this version's plans")
        return 0
    help_wanted = words[:1] in (["-h"], ["--help"])
    print(USAGE, end="", file=sys.stdout if help_wanted else sys.stderr)
    return 0 if help_wanted else 2


if __name__ == "__main__":
    sys.exit(main())
