"""One table of records [N, bytes] in every store, and how each gives back the records of a random batch."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.data import Rows


class Store(ABC):
    """A contender. ``write`` and ``open`` may import a package that is not installed: that store is left out,
    and the result notes it."""

    name: str
    most_records = 1 << 62
    """Beyond which making it would take longer than all the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, records: np.ndarray) -> None:
        """Store uint8 [N, bytes]."""

    @abstractmethod
    def open(self, n: int, width: int) -> None: ...

    @abstractmethod
    def gather(self, batch: np.ndarray) -> np.ndarray:
        """The records [len(batch), bytes] of these uids."""

    def close(self) -> None:
        """Let go of every mapping: the system does not drop mapped files."""
        for name in ("handle", "file"):
            vars(self).pop(name, None)


class Ours(Store):
    """fp32 logits, so that a record can hold any bytes: 8 of them are the input's hash."""

    name = "ensdistill"

    def write(self, records: np.ndarray) -> None:
        logits = np.ascontiguousarray(records[:, 8:]).view("<f4")[None]
        numbers = np.arange(len(records))
        teachers = SimpleNamespace(
            names=("a",),
            classes=tuple(map(str, range(logits.shape[-1]))),
            weights=np.ones(1),
            combiner="prob",
            predict_logits=lambda inputs: logits[:, inputs[:, 0]],
            fingerprint=lambda: {},
        )
        cache_targets(teachers, Rows(numbers[:, None], numbers, numbers), self.folder / "cache", codec="fp32")

    def open(self, n: int, width: int) -> None:
        self.handle: Any = TargetCache.open(self.folder / "cache")

    def gather(self, batch: np.ndarray) -> np.ndarray:
        return self.handle.gather_records(batch)


class OursAlone(Ours):
    """Without helping threads, as the others are."""

    name = "ensdistill, 1 thread"

    def open(self, n: int, width: int) -> None:
        self.handle = TargetCache.open(self.folder / "cache", threads=1)


class Memmap(Store):
    name = "numpy memmap"

    def write(self, records: np.ndarray) -> None:
        records.tofile(self.folder / "records")

    def open(self, n: int, width: int) -> None:
        self.handle: Any = np.memmap(self.folder / "records", np.uint8, "r", shape=(n, width))

    def gather(self, batch: np.ndarray) -> np.ndarray:
        return np.take(self.handle, batch, axis=0)


class Arrow(Store):
    name = "Arrow IPC"

    def write(self, records: np.ndarray) -> None:
        import pyarrow as pa

        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(records.shape[1]), len(records), [None, pa.py_buffer(records)]
        )
        table = pa.table({"record": column})
        with (
            pa.OSFile(str(self.folder / "records.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def open(self, n: int, width: int) -> None:
        import pyarrow as pa

        # From one buffer over the file. Of a file, Arrow's own threads read the parts, and one of them may hold
        # the mapping for some milliseconds after the close.
        mapped = pa.memory_map(str(self.folder / "records.arrow")).read_buffer()
        # The only chunk, and a view of the file: combine_chunks would copy it into memory.
        self.handle: Any = pa.ipc.open_file(mapped).read_all()["record"].chunk(0)
        self.width = width

    def gather(self, batch: np.ndarray) -> np.ndarray:
        return np.frombuffer(self.handle.take(batch).buffers()[1], np.uint8, len(batch) * self.width).reshape(
            -1, self.width
        )


class Lmdb(Store):
    name = "LMDB"

    def write(self, records: np.ndarray) -> None:
        import lmdb

        with lmdb.open(str(self.folder / "lmdb"), map_size=4 * records.nbytes + (64 << 20)) as store:
            for start in range(0, len(records), 10_000):
                with store.begin(write=True) as transaction:
                    for uid in range(start, min(start + 10_000, len(records))):
                        transaction.put(uid.to_bytes(8, "big"), records[uid].tobytes(), append=True)

    def open(self, n: int, width: int) -> None:
        import lmdb

        self.handle: Any = lmdb.open(str(self.folder / "lmdb"), readonly=True, lock=False, readahead=False)
        self.width = width

    def gather(self, batch: np.ndarray) -> np.ndarray:
        out = np.empty((len(batch), self.width), np.uint8)
        with self.handle.begin(buffers=True) as transaction:
            for row, uid in zip(out, batch.tolist(), strict=True):
                row[:] = np.frombuffer(transaction.get(uid.to_bytes(8, "big")), np.uint8)
        return out

    def close(self) -> None:
        if "handle" in vars(self):
            self.handle.close()
        super().close()


class Hdf5(Store):
    name = "HDF5"

    def write(self, records: np.ndarray) -> None:
        import h5py

        with h5py.File(self.folder / "records.h5", "w") as file:
            file.create_dataset("records", data=records)

    def open(self, n: int, width: int) -> None:
        import h5py

        self.file = h5py.File(self.folder / "records.h5", "r")
        self.handle: Any = self.file["records"]

    def gather(self, batch: np.ndarray) -> np.ndarray:
        uids, place = np.unique(batch, return_inverse=True)  # it takes rising indices only
        return self.handle[uids][place]

    def close(self) -> None:
        if "file" in vars(self):
            self.file.close()
        super().close()


class Zarr(Store):
    name = "zarr"

    def write(self, records: np.ndarray) -> None:
        import zarr

        array = zarr.create_array(
            self.folder / "zarr",
            shape=records.shape,
            chunks=(256, records.shape[1]),
            dtype="u1",
            compressors=None,
        )
        array[:] = records

    def open(self, n: int, width: int) -> None:
        import zarr

        self.handle: Any = zarr.open_array(self.folder / "zarr", mode="r")

    def gather(self, batch: np.ndarray) -> np.ndarray:
        return self.handle.oindex[batch]


class SafetensorsSlices(Store):
    name = "safetensors slices"

    def write(self, records: np.ndarray) -> None:
        from safetensors.numpy import save_file

        save_file({"records": records}, self.folder / "records.safetensors")

    def open(self, n: int, width: int) -> None:
        from safetensors import safe_open

        self.file = safe_open(self.folder / "records.safetensors", framework="numpy")
        self.handle: Any = self.file.get_slice("records")

    def gather(self, batch: np.ndarray) -> np.ndarray:
        return np.concatenate([self.handle[uid : uid + 1] for uid in batch.tolist()])


class FilePerSample(Store):
    name = "one file per sample"
    most_records = 50_000

    def write(self, records: np.ndarray) -> None:
        (self.folder / "files").mkdir()
        for uid, record in enumerate(records):
            self._file(uid).write_bytes(record.tobytes())

    def open(self, n: int, width: int) -> None:
        self.width = width

    def gather(self, batch: np.ndarray) -> np.ndarray:
        out = np.empty((len(batch), self.width), np.uint8)
        for row, uid in zip(out, batch.tolist(), strict=True):
            row[:] = np.frombuffer(self._file(uid).read_bytes(), np.uint8)
        return out

    def _file(self, uid: int) -> Path:
        return self.folder / "files" / str(uid)


STORES: tuple[type[Store], ...] = (
    Ours,
    OursAlone,
    Memmap,
    Arrow,
    Lmdb,
    Hdf5,
    Zarr,
    SafetensorsSlices,
    FilePerSample,
)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
