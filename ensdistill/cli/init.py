"""``ensdistill init DATA``: look at data, and write the settings of a job as a short YAML file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, print_json, usage_error
from ensdistill.cli.starting import READING, WORDS, start
from ensdistill.common.errors import WrongArgument

EPILOG = """\
examples:
  ensdistill init penguins.csv --target species
  ensdistill init photos/            a folder of images for each class
  ensdistill init models/ --data penguins.csv --target species
"""


def parser() -> Parser:
    """The options."""
    p = Parser(
        prog="ensdistill init",
        description="Looks at DATA and writes the settings of a job on it, a short YAML file with\n"
        "comments: the inputs, the target, the teachers and the student. Nothing is\n"
        "trained.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "path",
        metavar="DATA",
        help="a table (CSV, TSV, Parquet, JSON lines, Arrow), arrays (.npy, .npz), a folder of images or "
        "texts in class folders, or a folder of models with --data",
    )
    p.add_argument(
        "--target",
        metavar="NAME",
        help="the column, array or file of the labels; NAME,NAME,... of a table's several labels or numbers",
    )
    p.add_argument(
        "--task",
        metavar="TASK",
        help="of a table: classification, multilabel (columns of 0 and 1, or one of tags) or regression; by "
        "default what the target looks like",
    )
    p.add_argument("--separator", metavar="TEXT", help="of a table: between the tags of one target column")
    p.add_argument("--ignore", action="append", metavar="NAME", help="a column that is not to be used")
    p.add_argument("--data", metavar="DATA", help="the data of a folder of models")
    p.add_argument(
        "--data.unlabelled",
        metavar="WORDS",
        help='of a table: words in the target column that stand for an unknown label, such as "[NA]"; [] '
        "where each of them is a class",
    )
    p.add_argument(
        "--data.labels",
        metavar="LABELS",
        help='of a table: all classes in their order, such as "[low, middle, high]"; numbers too, which look '
        "like a regression's target otherwise",
    )
    p.add_argument(
        "-o", "--output", type=Path, metavar="FILE.yaml", help="default: DATA's name and .yaml, here"
    )
    p.add_argument("--force", action="store_true", help="replace the file if it is there")
    return p


def main(words: Sequence[str]) -> int:
    """Write the file; return the exit status."""
    options = parser().parse(words)
    given = {"--target": [options.target], "--ignore": options.ignore or [], "--data": [options.data]}
    given |= {"--task": [options.task], "--separator": [options.separator]}
    given |= {name: [vars(options)[name.removeprefix("--")]] for name in READING}
    names = (*WORDS, *READING)
    asked = [word for name in names for value in given[name] if value is not None for word in (name, value)]
    found, rest = start([options.path, *asked])
    unread = [w for w in rest[::2] if w.removeprefix("--data.") not in found.settings["data"]["init_args"]]
    if unread:
        raise WrongArgument(f"{unread[0]}: expected with a table; {options.path} is none")
    name = found.settings.pop("name")
    out = options.output or Path(f"{name}.yaml")
    if out.exists() and not options.force:
        return usage_error(
            f"--output: {out} is there already: name another (-o FILE.yaml), or replace it (--force)", more=""
        )
    from ensdistill.common import files
    from ensdistill.job.starting.written import written

    line = shlex.join(["ensdistill", "init", options.path, *asked])
    head = [f"Written by `{line}`.", f"Run it: ensdistill run {shlex.quote(str(out))}"]
    files.write_bytes(out, written(found.settings, found.facts, head).encode())
    if manner().json:
        print_json({"file": str(out), "found": dict(found.facts), "settings": found.settings})
        return 0
    found.show()
    print(out if manner().quiet else f"{out}  Run it: ensdistill run {shlex.quote(str(out))}")
    return 0
