"""From a user's data to the settings of a job: the data are read, and nothing is asked that they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ensdistill.common.errors import WrongArgument
from ensdistill.data.files import ARRAYS
from ensdistill.data.table_files import TABLES
from ensdistill.job.starting.arrays import inputs_in, look_at_arrays
from ensdistill.job.starting.folders import look_at_folder, tables_in
from ensdistill.job.starting.found import Found, listed, settings_of
from ensdistill.job.starting.models import look_at_models, no_models
from ensdistill.job.starting.tables import Wanted, look_at_table

__all__ = ["Found", "is_data", "look", "settings_of"]
KNOWN = "a table (.csv, .tsv, .parquet, .jsonl, .arrow), arrays (.npy, .npz), or a folder of images or texts"
# Files that hold data which no data set reads: rather these than settings.
_OTHERS = "xlsx xls ods gz zip xz tar pkl pickle h5 hdf5 sqlite db xml data dat dta txt"
OTHERS = tuple(f".{ending}" for ending in _OTHERS.split())


def is_data(path: Path) -> bool:
    """Whether a path looks like data rather than like settings."""
    return path.is_dir() or path.suffix.lower() in (*TABLES, *ARRAYS, *OTHERS)


def look(
    path: Path,
    target: str | None = None,
    *,
    ignore: Sequence[str] = (),
    data: Path | None = None,
    unlabelled: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    task: str | None = None,
    separator: str | None = None,
) -> Found:
    """Look at a file or folder.

    Parameters
    ----------
    path : Path
        Data; or a folder of models, with ``data`` beside it.
    target : str, optional
        The column, array or file of the labels; of a table also several columns, with commas between them.
    ignore : sequence of str
        Columns that are not to be used.
    data : Path, optional
        The data of the models in the folder ``path``.
    unlabelled, labels : sequence of str, optional
        As of :class:`ensdistill.data.Table`.
    task, separator : str, optional
        The same; a separator is of tables alone, and folders of classes have the one task.

    Raises
    ------
    ValueError
        Nothing is known there, the labels are not certain, or they are no classes; names the remedy.
    """
    if not path.exists():
        raise WrongArgument(f"DATA: there is no file or folder {str(path)!r}")
    suffix = path.suffix.lower()
    wanted = Wanted(target, tuple(ignore), unlabelled, labels, task, separator)
    if path.is_dir():
        return _look_at_folder(path, wanted, data)
    if data is not None:
        raise WrongArgument(f"--data: expected with a folder of models; {path} is a file")
    if suffix in TABLES:
        return look_at_table(path, wanted)
    if suffix in ARRAYS:
        return look_at_arrays(path, target, wanted.task_of_arrays)
    raise WrongArgument(
        f"DATA: expected {KNOWN}; got {path.name}: write it as one of these, for example as CSV"
    )


def _look_at_folder(path: Path, wanted: Wanted, data: Path | None) -> Found:
    if (models := look_at_models(path)) is not None:
        members, facts = models
        if data is None:
            raise WrongArgument(
                f"--data: expected the data that the models of {path} are for, --data FILE; got nothing"
            )
        found = look(data, **vars(wanted))
        return replace(found, path=path, members=members, facts=[*found.facts, *facts])
    if data is not None:
        raise WrongArgument(f"--data: expected with a folder of models; {path} holds {no_models(path)}")
    tables = tables_in(path)
    if tables is not None:
        return _of_parts(path, look_at_table(tables[0], wanted), tables[1])
    if (in_folders := look_at_folder(path)) is not None:
        wanted.check_classes_alone()
        return in_folders
    if (arrays := inputs_in(path)) is not None:
        return replace(look_at_arrays(arrays, wanted.target, wanted.task_of_arrays), path=path)
    endings = Counter(file.suffix or file.name for file in path.rglob("*") if file.is_file())
    holds = listed([f"{count} {ending}" for ending, count in endings.most_common()]) or "nothing"
    raise WrongArgument(f"DATA: expected {KNOWN} in class folders; {path} holds {holds}")


def _of_parts(path: Path, found: Found, others: dict[str, Path]) -> Found:
    """The table of the training rows with the tables of test and pool beside it."""
    arguments, unlabelled, test = dict(found.data["init_args"]), found.unlabelled, found.test
    facts = list(found.facts)
    for part, file in others.items():
        try:
            given = {"unlabelled": arguments.get("unlabelled"), "separator": arguments.get("separator")}
            own = arguments["target"]
            names = own if isinstance(own, str) else ",".join(own)
            ignored = tuple(arguments.get("ignore", ()))
            looked = look_at_table(file, Wanted(names, ignored, task=arguments.get("task"), **given))
        except ValueError:  # without labels, as those of competitions are
            part = "pool"
        setting = f"{part}_path"
        if setting in arguments:
            raise ValueError(f"path: {path} holds two tables without labels: {arguments[setting]} and {file}")
        arguments[setting] = str(file)
        if part == "pool":
            from ensdistill.data.table_files import read_table

            unlabelled += len(read_table(file))
        else:
            test = looked.total
        facts.append((part, f"{file.name}{', which has no labels' * (part == 'pool')}"))
    data = {**found.data, "init_args": arguments}
    return replace(found, path=path, data=data, unlabelled=unlabelled, test=test, facts=facts)
