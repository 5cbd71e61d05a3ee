"""The files of a training's checkpoints: one file, or the newest few in the training's folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ensdistill.common.scalars import whole


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the checkpoints of a training are: in one file, or the newest in a folder.

    Parameters
    ----------
    file : Path or None
        The one file.
    folder : Path or None
        Of files that are named by their steps.
    keep_last : int
        How many stay in the folder.
    """

    file: Path | None
    folder: Path | None = None
    keep_last: int = 1

    def __str__(self) -> str:
        return str(self.newest() or self.folder)

    def newest(self) -> Path | None:
        """The file to go on from; one file need not be there."""
        return self.file if self.folder is None else max(self._files(), default=None)

    def at(self, step: int) -> Path:
        """The file for the state after ``step`` steps."""
        if self.folder is None:
            assert self.file is not None
            return self.file
        return self.folder / f"checkpoint-{step:09d}.safetensors"

    def tidy(self) -> None:
        """Delete all but the newest files, and the shards of files that are not there."""
        for file in sorted(self._files())[: -self.keep_last]:
            file.unlink()
        if self.folder is not None:
            for shards in self.folder.glob("checkpoint-*.shards-*"):
                if not shards.with_name(shards.name.rpartition(".shards-")[0]).exists():
                    shutil.rmtree(shards)

    def _files(self) -> list[Path]:
        return [] if self.folder is None else list(self.folder.glob("checkpoint-*.safetensors"))


def checkpoint_files(
    checkpoint: Path | str | None, folder: Path | str | None, keep_last: int, every: int = 1
) -> CheckpointFiles | None:
    """The files of a training's checkpoints; None where it has none.

    Raises
    ------
    ValueError
        Both a file and a folder, a folder that is a file, or fewer than one checkpoint to keep or step
        between two.
    """
    if not whole(every) or every < 1:
        raise ValueError(f"checkpoint_every: expected an integer of at least 1, in steps; got {every!r}")
    if not whole(keep_last) or keep_last < 1:
        raise ValueError(f"keep_last: expected an integer of at least 1; got {keep_last!r}")
    if folder is None:
        if keep_last != 1:
            raise ValueError(f"keep_last: {keep_last} checkpoints need a folder; pass folder=")
        return None if checkpoint is None else CheckpointFiles(Path(checkpoint))
    if checkpoint is not None:
        raise ValueError(
            f"checkpoint: got {checkpoint} and folder={folder}, which holds checkpoints too; pass just one"
        )
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"folder: expected a folder, or a path where none is yet; {folder} is a file")
    return CheckpointFiles(None, Path(folder), keep_last)
