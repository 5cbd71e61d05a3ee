"""A cache of a job against the teachers that it was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from ensdistill.cache import TargetCache
from ensdistill.common.errors import WrongArgument
from ensdistill.common.progress import Progress
from ensdistill.data import Rows
from ensdistill.job.config import Config
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.stored import labelled_targets
from ensdistill.teachers import Ensemble


def verify_against_teachers(
    cache: TargetCache,
    share: float,
    *,
    config: Config | None = None,
    ensemble: Path | None = None,
    transfer: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Predict a share of the samples with the teachers again and compare; see
    :meth:`ensdistill.cache.TargetCache.verify_against`.

    Parameters
    ----------
    cache : TargetCache
    share : float
        In (0, 1].
    config : Config, optional
        The job's. Needed for classes of one's own, augmented inputs, targets of labelled rows other than the
        members' own, and transfer sets that are no arrays, which are built again.
    ensemble, transfer : path, optional
        By default those of the job's folder that the cache lies in: ``seed-0/teachers/ensemble`` and
        ``seed-0/cache/transfer.safetensors`` for ``seed-0/cache/targets``.

    Returns
    -------
    int
        How many samples were compared.

    Raises
    ------
    WrongArgument
        A file is not there, or the configuration is needed; names the option.
    CacheMismatch
        The teachers' predictions are others.
    """
    folder = cache.path.resolve().parent
    rows = _rows(transfer, folder, config)
    place = ensemble or folder.parent / "teachers" / "ensemble"
    if not place.exists():
        raise WrongArgument(f"--ensemble: there is nothing at {place}; pass its path")
    made_by = cache.manifest["fingerprint"].get("views")
    augment = None
    if config is not None:
        seed = made_by["seed"] if made_by else 0
        augment = config.cache.changes(config.split(seed), seed) if made_by else config.cache.augment
    if augment is None and made_by:
        got = "nothing" if config is None else "a job without one"
        raise WrongArgument(
            "--config: expected a job's YAML file with the cache.augment or cache.views by which the inputs "
            "were changed, "
            f"{made_by['augment']}; got {got}"
        )
    teachers: Any = Ensemble.load(place, () if config is None else RunFolder(config).trusted)
    asked = [*cache.manifest["fingerprint"]["ensemble"]["members"]]
    if "labelled" in cache.manifest["fingerprint"]["ensemble"]:
        if config is None:
            raise WrongArgument(
                "--config: expected a job's YAML file with the cache.labelled by which the targets of "
                "labelled rows were chosen; got nothing"
            )
        teachers = labelled_targets(teachers, config.cache, place.parent / "held_out.safetensors")
    elif set(asked) < set(teachers.names):  # the cache has no members of weight 0
        teachers = teachers.only(*asked)
    return cache.verify_against(teachers, rows, share=share, augment=augment, progress=progress)


def _rows(transfer: Path | None, folder: Path, config: Config | None) -> Rows:
    """The transfer set, from its file or built again."""
    file = transfer or folder / "transfer.safetensors"
    if file.exists():
        return Rows(**load_file(file))
    seed = re.fullmatch(r"seed-(\d+)", folder.parent.name)
    if transfer is not None or seed is None:
        raise WrongArgument(f"--transfer: there is nothing at {file}; pass its path")
    if config is None:
        raise WrongArgument(
            f"--transfer, --config: there is nothing at {file}; pass its path, or, for samples that are no "
            "arrays, the job's YAML file, by which the transfer set is built again"
        )
    return RunFolder(config).transfer(int(seed[1]))
