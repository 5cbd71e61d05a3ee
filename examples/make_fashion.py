"""Write examples/data/fashion/{train,test}/CLASS/*.png: 28x28 images of clothes.

Fashion-MNIST (MIT licence) from Debian's dataset-fashion-mnist; where that is not there, scikit-learn's
digits of 8x8 pixels in the same folders.

    apt-get install dataset-fashion-mnist
    python -m examples.make_fashion [--train 10000] [--test 2000] [--fashion FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.teachers.data import FASHION, Missing, fashion_arrays

DATA = Path(__file__).parent / "data"
CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


def digits() -> tuple[np.ndarray, ...]:
    """scikit-learn's digits, uint8: images to train on, their labels, test images, their labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    x, test_x, y, test_y = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
    return x, y, test_x, test_y


def write(folder: Path, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / names[label] / f"{number:05}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--out", type=Path, default=DATA / "fashion")
    options = parser.parse_args(arguments)
    names = CLOTHES
    try:
        x, y, test_x, test_y = fashion_arrays(options.fashion)
    except Missing as error:
        print(f"make_fashion: {error}. scikit-learn's digits take their place")
        names, (x, y, test_x, test_y) = tuple("0123456789"), digits()
    parts = {
        "train": (x[: options.train], y[: options.train]),
        "test": (test_x[: options.test], test_y[: options.test]),
    }
    if options.out == parser.get_default("out"):
        shutil.rmtree(options.out, ignore_errors=True)
    elif options.out.exists():
        sys.exit(f"make_fashion: --out: {options.out} is there already")
    for part, (images, labels) in parts.items():
        write(options.out / part, images, labels, names)
        print(f"{options.out / part}: {len(images)} images of {len(names)} classes")


if __name__ == "__main__":
    main()
