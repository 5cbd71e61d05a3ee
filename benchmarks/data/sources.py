"""The same samples in every container, and a map-style data set of each for the plain loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ensdistill.data.arrow import ArrowSamples
from ensdistill.data.files import ImageFiles
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.preprocess import ImageTransform

COLUMNS, PIXELS, CLASSES = 50, 32, 10
GROUP = 65_536  # rows of a Parquet file's row group
PART = 1 << 18


def numbers(start: int, stop: int) -> np.ndarray:
    """float32 [stop - start, COLUMNS]; the same for the same rows."""
    rows = np.arange(start, stop, dtype=np.float32)[:, None]
    return np.sin(rows * (1 + np.arange(COLUMNS, dtype=np.float32)) * 1e-3).astype(np.float32)


def image(number: int) -> np.ndarray:
    """uint8 [PIXELS, PIXELS, 3]: noise, which a PNG can't compress, with a brightness."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 128 + number % 128, (PIXELS, PIXELS, 3), dtype=np.uint8)


def make(kind: str, folder: Path, rows: int) -> None:
    """Write the samples, unless they are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"{kind}-{rows}.done"
    if done.exists():
        return
    names = [f"c{i:02}" for i in range(COLUMNS)]
    if kind == "array":
        out = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, (rows, COLUMNS))
        for start in range(0, rows, PART):
            out[start : start + PART] = numbers(start, min(start + PART, rows))
        out.flush()
    elif kind in ("parquet", "arrow"):
        schema = pa.schema([(name, pa.float32()) for name in names])
        writer: Any = (
            pq.ParquetWriter(folder / "rows.parquet", schema)
            if kind == "parquet"
            else pa.ipc.new_file(str(folder / "rows.arrow"), schema)
        )
        with writer:
            for start in range(0, rows, GROUP):
                part = numbers(start, min(start + GROUP, rows))
                writer.write_table(pa.table(dict(zip(names, part.T.copy(), strict=True)), schema))
    else:
        from PIL import Image

        for number in range(rows):
            place = folder / "png" / f"{number // 1000:04}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(number)).save(place / f"{number:08}.png", compress_level=1)
    done.touch()


def samples(kind: str, folder: Path) -> Any:
    """The samples as a user hands them over."""
    if kind == "array":
        return np.load(folder / "rows.npy")
    if kind == "parquet":
        return ParquetSamples(folder / "rows.parquet")
    if kind == "arrow":
        return ArrowSamples(folder / "rows.arrow")
    return ImageFiles.from_folder(folder / "png")


class Plain(Dataset[torch.Tensor]):
    """A data set as one writes it for a ``DataLoader`` by hand; tables by whole batches."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.samples, self.kind = samples(kind, folder), kind

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if self.kind == "png":
            pixels = torch.from_numpy(self.samples[int(index)][0].copy())
            return pixels.permute(2, 0, 1).float() / 255
        rows = self.samples[np.asarray(index)]
        return torch.from_numpy(np.ascontiguousarray(as_numbers(rows)))


def as_numbers(batch: Any) -> np.ndarray:
    """A preprocess of tables: float32 [N, COLUMNS]."""
    return np.asarray(batch if isinstance(batch, np.ndarray) else batch.to_numpy(np.float32), np.float32)


def preprocess(kind: str) -> Any:
    """The student's and the teacher's preprocess of this kind of samples."""
    from ensdistill.data.preprocess import Named

    if kind == "array":
        return None
    return ImageTransform() if kind == "png" else Named(as_numbers)
