"""Write examples/data/diamonds.csv: the prices of 53 940 round diamonds, with weight, quality and size.

Seven columns of numbers, and three of categories that have an order. From Debian's r-cran-ggplot2 (MIT; the
data come with ggplot2).

    apt-get install r-cran-ggplot2; pip install 'ensdistill[bench]'
    python -m examples.make_diamonds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.quality.sets import R, diamonds
from benchmarks.teachers.data import Missing

DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, default=R / "ggplot2", help="the folder of R's ggplot2")
    parser.add_argument("--out", type=Path, default=DATA / "diamonds.csv")
    options = parser.parse_args(arguments)
    try:
        frame = diamonds(options.package)
    except Missing as error:
        sys.exit(f"make_diamonds: {error}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    print(f"{options.out}: {len(frame)} rows, {len(frame.columns)} columns; the target is price, in dollars")


if __name__ == "__main__":
    main()
