"""Write examples/data/packages.csv: short descriptions of Debian's packages, and their sections; with --tags
examples/data/tags.csv: the descriptions, and the commonest of the packages' tags.

Needs the package lists of a Debian or Ubuntu system (apt-get update).

    python -m examples.make_packages [--rows 12000] [--sections 12]
    python -m examples.make_packages --tags 50
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The fields of each package; a field goes on in lines that begin with a space."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith((" ", "\t")):
                fields[name] += "\n" + ("" if line.strip() == "." else line.strip())
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def listed() -> Iterator[dict[str, str]]:
    """The fields of all packages that this system knows of."""
    if shutil.which("apt-cache") is None:
        sys.exit("make_packages: there is no apt-cache here; it lists the packages of Debian and Ubuntu")
    run = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=False)
    if run.returncode:
        sys.exit(f"make_packages: apt-cache failed: {run.stderr.decode(errors='replace').strip()}")
    yield from stanzas(run.stdout.decode())


def tags_of(field: str) -> list[str]:
    """The tags of a package; ``works-with::{db,file}`` stands for two.

    Examples
    --------
    >>> tags_of("role::program, works-with::{db, file}")
    ['role::program', 'works-with::db', 'works-with::file']
    """
    found = []
    for part in re.split(r",\s*(?![^{]*\})", field):
        several = re.fullmatch(r"(.*)\{(.*)\}", part.strip())
        ends = [""] if several is None else [end.strip() for end in several[2].split(",")]
        found += [(part.strip() if several is None else several[1]) + end for end in ends]
    return [tag for tag in found if tag]


def packages(tagged: bool = False) -> list[tuple[str, str, str]]:
    """Name, description and section (or the field of tags) of each package that has them, once each, sorted
    by name."""
    found = {}
    for fields in listed():
        text = fields.get("Description") or fields.get("Description-en") or ""
        last = fields.get("Tag", "") if tagged else fields.get("Section", "").rpartition("/")[2]
        if text and last:
            found[fields["Package"]] = (fields["Package"], text, last)
    if not found:
        sys.exit("make_packages: apt-cache lists no packages; run apt-get update first")
    return [found[name] for name in sorted(found)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_000, help="drawn at random, with a fixed seed")
    parser.add_argument("--sections", type=int, default=12, help="the largest ones")
    parser.add_argument("--tags", type=int, help="write so many of the commonest tags in place of sections")
    parser.add_argument("--out", type=Path, help="default: examples/data/packages.csv, or tags.csv")
    options = parser.parse_args(arguments)
    if options.tags is not None:
        write_tags(options.tags, options.rows, options.out or DATA / "tags.csv")
        return
    options.out = options.out or DATA / "packages.csv"
    found = packages()
    kept = {name for name, _ in Counter(section for *_, section in found).most_common(options.sections)}
    found = [package for package in found if package[2] in kept]
    order = np.sort(np.random.default_rng(0).permutation(len(found))[: options.rows])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["package", "description", "section"])
        writer.writerows(found[place] for place in order)
    print(f"{options.out}: {len(order)} of {len(found)} packages of the sections {', '.join(sorted(kept))}")


def write_tags(count: int, rows: int, out: Path) -> None:
    """Write the packages that have some of the ``count`` commonest tags."""
    own = {name: (text, tags_of(field)) for name, text, field in packages(tagged=True)}
    common = Counter(tag for _, tags in own.values() for tag in tags).most_common(count)
    kept = {tag for tag, _ in common}
    found = [
        (name, text, ", ".join(sorted(kept.intersection(tags))))
        for name, (text, tags) in own.items()
        if kept.intersection(tags)
    ]
    order = np.sort(np.random.default_rng(0).permutation(len(found))[:rows])
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["package", "description", "tags"])
        writer.writerows(found[place] for place in order)
    print(f"{out}: {len(order)} of {len(found)} packages with some of {len(kept)} tags")


if __name__ == "__main__":
    main()
