"""Writing a run folder so that a crash at any moment leaves either the old file or the new one, never half of
one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ensdistill.common.errors import WrongArgument


class FolderLocked(RuntimeError):
    """Another process is writing the same folder."""


def local_path(path: Path | str) -> Path:
    """Where to write, as an absolute path: the working directory may change before all is written.

    A URL is refused, of which ``Path`` would make a local folder.

    Raises
    ------
    ValueError
        ``path`` is a URL.
    """
    if "://" in str(path):
        raise WrongArgument(
            f"path: expected one on this machine; got {path}; write to a local folder, then push it "
            "(ensdistill cache push)"
        )
    return Path(path).absolute()


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed over ``path``, else
    removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers apart; a leftover of a killed writer is overwritten or ignored, never
    # read.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            advice = "everything finished so far is kept: free some space and run the same command again"
            raise OSError(errno.ENOSPC, f"no space left on the disk of {path.parent}; {advice}") from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Of a file or a folder: only then do its bytes, or its names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_json(path: Path | str, value: Any) -> None:
    """Atomically write ``value`` as indented JSON; NaN and infinities are refused because JSON has no such
    numbers."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """The parsed file, or None where it does not exist.

    Raises
    ------
    ValueError
        The file exists but is not JSON (the message names it).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); delete it to have it written again") from error


def write_arrays(
    path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Atomically write named arrays as one ``.safetensors`` file."""
    from safetensors.numpy import save

    write_bytes(
        path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=dict(metadata or {}))
    )


@contextmanager
def exclusive(folder: Path | str) -> Iterator[None]:
    """Hold the folder's lock; the lock belongs to the process, so it is free again after a crash.

    Raises
    ------
    FolderLocked
        Another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise FolderLocked(
            f"{folder} is being written by another process; wait for it to end, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
