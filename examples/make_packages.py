"""Write examples/data/packages.csv: short descriptions of Debian's packages, and their sections.

Needs the package lists of a Debian or Ubuntu system (apt-get update).

    python -m examples.make_packages [--rows 12000] [--sections 12]
"""

from __future__ import annotations

import argparse
import csv
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


def packages() -> list[tuple[str, str, str]]:
    """Name, description and section of each package that has them, once each, sorted by name."""
    if shutil.which("apt-cache") is None:
        sys.exit("make_packages: there is no apt-cache here; it lists the packages of Debian and Ubuntu")
    run = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=False)
    if run.returncode:
        sys.exit(f"make_packages: apt-cache failed: {run.stderr.decode(errors='replace').strip()}")
    found = {}
    for fields in stanzas(run.stdout.decode()):
        text = fields.get("Description") or fields.get("Description-en") or ""
        section = fields.get("Section", "").rpartition("/")[2]
        if text and section:
            found[fields["Package"]] = (fields["Package"], text, section)
    if not found:
        sys.exit("make_packages: apt-cache lists no packages; run apt-get update first")
    return [found[name] for name in sorted(found)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_000, help="drawn at random, with a fixed seed")
    parser.add_argument("--sections", type=int, default=12, help="the largest ones")
    parser.add_argument("--out", type=Path, default=DATA / "packages.csv")
    options = parser.parse_args(arguments)
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


if __name__ == "__main__":
    main()
