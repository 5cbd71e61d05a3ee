"""Write examples/data/income.csv: 8 993 people of the San Francisco Bay Area in 1987, and their incomes.

Thirteen columns of categories, some with gaps, and nine classes of income that have an order. From Debian's
r-cran-kernlab (GPL-2; the data come with "The Elements of Statistical Learning").

    apt-get install r-cran-kernlab; pip install 'ensdistill[bench]'
    python -m examples.make_income [--file income.rda]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.teachers.data import Missing, r_frame

FILE = Path("/usr/lib/R/site-library/kernlab/data/income.rda")
DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--out", type=Path, default=DATA / "income.csv")
    options = parser.parse_args(arguments)
    try:
        frame = r_frame(options.file, "income", "apt-get install r-cran-kernlab, or --file FILE")
    except Missing as error:
        sys.exit(f"make_income: {error}")
    frame.columns = [name.lower().replace(".", "_") for name in frame.columns]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False)
    print(
        f"{options.out}: {len(frame)} rows, {len(frame.columns)} columns; the target is income, in the order"
    )
    print(list(frame.income.cat.categories))


if __name__ == "__main__":
    main()
