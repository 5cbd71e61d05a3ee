"""``ensdistill cache info | verify | contributions | add-member | drop-member | reweight | convert | export |
push | pull``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ensdistill.cache import manifest as m
from ensdistill.cache.derive import add_member, convert, drop_member, reweight
from ensdistill.cache.reader import TargetCache
from ensdistill.cli.cache_info import about, table_of
from ensdistill.cli.cache_values import share_of, weight_of
from ensdistill.cli.display import Rate
from ensdistill.cli.manner import manner
from ensdistill.cli.messages import Parser, number, print_json, whole_number
from ensdistill.common.errors import WrongArgument

EXAMPLE = "runs/digits/seed-0/cache/targets"
IN_ORDER = "in-order"
CODECS = (
    "uint8, fp16, bf16, fp32, topk-N, topk4-N to topk8-N, counts-N, draws-N "
    "(of regression fp32, fp16, affine16, uint8), or the import "
    "path of a codec of your own"
)


_CONVERT = ("codec", "mixture_at", "max_kl", "max_error", "seed", "overwrite")


def parsers() -> dict[str, Parser]:
    """The options of each command."""
    commands: dict[str, Parser] = {}

    def command(
        name: str, work: Callable[[argparse.Namespace, Console], int], text: str, example: str
    ) -> Parser:
        text = f"{text} Example: ensdistill cache {name} {example}"
        commands[name] = Parser(prog=f"ensdistill cache {name}", description=text)
        commands[name].set_defaults(work=work)
        return commands[name]

    sub = command(
        "info",
        _info,
        "Shows a target cache: records, codec and its measured error, members with their weights, combiner, "
        "classes. It reads the "
        "manifest alone.",
        EXAMPLE,
    )
    _folder(sub)

    sub = command(
        "verify",
        _verify,
        "Reads every record of a target cache and checks every byte against the manifest; the exit status "
        "is 1 where one differs.",
        f"{EXAMPLE} --against-teachers 0.1%",
    )
    _folder(sub)
    sub.add_argument(
        "--against-teachers",
        type=share_of,
        metavar="SHARE",
        help="also predict this share of the samples (0.1%% or 0.001) with the teachers and compare",
    )
    sub.add_argument(
        "--ensemble",
        type=Path,
        metavar="FOLDER",
        help="the saved ensemble (default: that of the job whose cache this is)",
    )
    sub.add_argument(
        "--transfer",
        type=Path,
        metavar="FILE",
        help="transfer.safetensors (default: the one beside the cache)",
    )
    sub.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the job's YAML file; needed for samples that are no arrays, for a cache with views, "
        "for other targets of labelled rows, and for model classes of your own",
    )

    sub = command(
        "contributions",
        _contributions,
        "Shows how much each member adds to the mixture, from the stored targets alone: by how much it is "
        "worse without the member, and the member's share over all orders (Shapley value). Without labels "
        "by the KL from the mixture of all; with the labels of the cache's rows also by accuracy and NLL. Of "
        "a regression by the RMSE from the mean of all, with labels by RMSE and, with variances, NLL.",
        f"{EXAMPLE} --labels labels.npy",
    )
    _folder(sub)
    sub.add_argument(
        "--labels",
        type=Path,
        metavar="FILE.npy",
        help="integers [samples] in the order of the cache's uids, -100 where unknown (of several labels "
        "[samples, labels], -1; of a regression numbers, NaN)",
    )
    sub.add_argument(
        "--orders",
        type=whole_number,
        default=128,
        help="random orders, of more than ten members (default: 128)",
    )

    sub = command(
        "add-member",
        _add,
        "Writes a copy of a target cache with one member more; the others are not run again. The logits are "
        "a NumPy file, float32 [samples, classes], and --uids names the sample of each of its rows. To a "
        "cache of regression, --means and perhaps --variances take their place.",
        f"{EXAMPLE} with-forest --name forest --logits forest.npy --uids uids.npy --weight 0.2",
    )
    _folder(sub)
    _out(sub)
    sub.add_argument("--name", required=True, help="the new member's name")
    sub.add_argument("--logits", type=Path, metavar="FILE.npy", help="float32 [samples, classes]")
    sub.add_argument(
        "--means",
        type=Path,
        metavar="FILE.npy",
        help="of regression: floats [samples, numbers] in the data's units",
    )
    sub.add_argument("--variances", type=Path, metavar="FILE.npy", help="of regression: the means' variances")
    sub.add_argument(
        "--uids",
        required=True,
        metavar="FILE.npy",
        help="integers [samples]: the uid of each row of the predictions; or the word "
        f"{IN_ORDER}: the cache's rows",
    )
    sub.add_argument(
        "--weight",
        type=number,
        required=True,
        help="the new member's weight; the weights of the others stay as they are",
    )
    sub.add_argument(
        "--max-kl",
        type=number,
        metavar="NATS",
        help="refuse a row whose KL is larger, all conversions added up",
    )
    sub.add_argument(
        "--max-error",
        type=number,
        metavar="SHARE",
        help="of regression: refuse a row whose error is larger, all conversions added up",
    )

    sub = command(
        "drop-member",
        _drop,
        "Writes a copy of a target cache without one of its members.",
        f"{EXAMPLE} without-a --name a",
    )
    _folder(sub)
    _out(sub)
    sub.add_argument("--name", required=True, help="the member's name")

    sub = command(
        "reweight",
        _reweight,
        "Gives the members of a target cache other weights, in place. A job's own cache gets the job's "
        "weights again at its next run: "
        "reweight a copy.",
        "my-copy forest=0.5 svc=0.3 cnn=0.2",
    )
    _folder(sub)
    sub.add_argument(
        "weights", nargs="+", type=weight_of, metavar="MEMBER=WEIGHT", help="one for each member"
    )

    sub = command(
        "convert",
        _convert,
        "Writes the same targets in another codec, or only their mixture.",
        f"{EXAMPLE} small --codec topk-4 --mixture-at 2",
    )
    _folder(sub)
    _out(sub)
    sub.add_argument("--codec", required=True, help=CODECS)
    sub.add_argument(
        "--mixture-at", type=number, metavar="T", help="keep only the members' mixture at this temperature"
    )
    sub.add_argument(
        "--max-kl",
        type=number,
        metavar="NATS",
        help="refuse a row whose KL is larger, all conversions added up",
    )
    sub.add_argument(
        "--max-error",
        type=number,
        metavar="SHARE",
        help="of regression: refuse a row whose error is larger, all conversions added up",
    )
    sub.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        help="the seed of the draws of counts-N and draws-N (default: 0)",
    )

    sub = command(
        "export",
        _export,
        "Writes a target cache as one Parquet file, for other tools.",
        f"{EXAMPLE} targets.parquet",
    )
    _folder(sub)
    sub.add_argument("file", metavar="FILE.parquet", help="the new file")

    sub = command(
        "push", _push, "Copies a target cache to a URL that fsspec knows.", f"{EXAMPLE} s3://bucket/targets"
    )
    _folder(sub)
    sub.add_argument("url", metavar="URL", help="the copy's place, such as s3://bucket/targets")
    _overwrite(sub)

    sub = command(
        "pull", _pull, "Copies a target cache from a URL that fsspec knows.", "s3://bucket/targets here"
    )
    sub.add_argument("url", metavar="URL", help="the cache's place, such as s3://bucket/targets")
    sub.add_argument("folder", metavar="FOLDER", help="the copy's folder")
    _overwrite(sub)
    _trust(sub)
    return commands


def main(words: Sequence[str]) -> int:
    """Run the command that is the first word; return the exit status. Wrong usage exits with 2, as argparse
    does."""
    options = parsers()[words[0]].parse(words[1:])
    quiet = manner().json or (
        manner().quiet and words[0] not in ("info", "contributions")
    )  # elsewhere the result is in a file
    return options.work(options, Console(highlight=False, soft_wrap=True, quiet=quiet))


def _folder(sub: Parser) -> None:
    sub.add_argument("folder", metavar="FOLDER", help="the cache's folder")
    _trust(sub)


def _trust(sub: Parser) -> None:
    text = (
        "a codec outside ensdistill, by import path, that may be imported to read the cache; may be given "
        "several times"
    )
    sub.add_argument("--trust", action="append", default=[], metavar="CLASS", help=text)


def _open(options: argparse.Namespace) -> TargetCache:
    return TargetCache.open(_there(options.folder), trusted=options.trust)


def _there(folder: str) -> str:
    if Path(folder).is_file():
        raise WrongArgument(f"FOLDER: {folder}: expected a target cache's folder; got a file")
    if "://" not in folder and not Path(folder).exists():
        raise WrongArgument(f"FOLDER: there is no folder {folder!r}; expected a target cache's")
    return folder


def _out(sub: Parser) -> None:
    sub.add_argument("out", metavar="OUT", help="the new cache's folder")
    _overwrite(sub)


def _overwrite(sub: Parser) -> None:
    sub.add_argument("--overwrite", action="store_true", help="replace a cache that is there")


def _info(options: argparse.Namespace, console: Console) -> int:
    cache = _open(options)
    if manner().json:
        print_json(about(cache))
    else:
        console.print(table_of(cache, str(options.folder)))
    return 0


def _contributions(options: argparse.Namespace, console: Console) -> int:
    from ensdistill.cli.cache_contributions import document, table
    from ensdistill.student.contributions import member_contributions

    labels = None
    if options.labels is not None:
        labels = np.asarray(_array("--labels", options.labels, "the labels [samples]"))
    found = member_contributions(_open(options), labels, orders=options.orders)
    if manner().json:
        print_json({"folder": str(options.folder), **document(found)})
        return 0
    console.print(table(found))
    of = f", {found.labelled} labels known" if found.labelled else ""
    console.print(f"\n{found.rows} rows{of}. Positive: the mixture is better with the member.")
    return 0


def _verify(options: argparse.Namespace, console: Console) -> int:
    cache = _open(options)
    with _progress("reading", "bytes") as progress:
        cache.verify(progress=progress)
    console.print(f"[green]✓[/] {options.folder}: {len(cache)} samples read, every byte is as written")
    count = None
    if options.against_teachers is not None:
        from ensdistill.job.rechecking import verify_against_teachers

        config = _config(options.config)
        with _progress("predicting with the teachers") as progress:
            count = verify_against_teachers(
                cache,
                options.against_teachers,
                config=config,
                ensemble=options.ensemble,
                transfer=options.transfer,
                progress=progress,
            )
        console.print(f"[green]✓[/] {count} samples: the teachers' predictions equal the stored targets")
    if manner().json:
        print_json({"folder": str(cache.path), "samples": len(cache), "compared_with_teachers": count})
    return 0


def _config(file: Path | None) -> Any:
    """The job that a YAML file describes."""
    if file is None:
        return None
    if not file.is_file():
        raise WrongArgument(f"--config: there is no file {file}")
    from ensdistill.cli.settings import load_config

    return load_config(["--config", str(file)])


@contextmanager
def _progress(what: str, unit: str = "samples") -> Iterator[Callable[[int, int], None]]:
    """A bar with the rate and the time left, on standard error, and only on a terminal; ``unit`` may be
    ``bytes``."""
    counts = (
        (DownloadColumn(), TransferSpeedColumn())
        if unit == "bytes"
        else (MofNCompleteColumn(), TextColumn(unit), Rate())
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    hidden = manner().quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _written(console: Console, cache: TargetCache) -> int:
    if manner().json:
        print_json(about(cache))
    measure = m.measure_of(cache.manifest)
    cost = f"max {'KL' if measure == 'kl' else measure} {cache.manifest['statistics'][measure]['max']:.1e}"
    if any(m.conversions(cache.manifest, name) for name in cache.names):
        cost += f" to the source's targets, whose own is {max(m.cost_before(cache.manifest).values()):.1e}"
    console.print(
        f"[green]✓[/] {cache.path}: {len(cache)} records of {cache.layout.bytes} bytes each, "
        f"{cache.manifest['codec']}, {cost}"
    )
    return 0


def _array(option: str, file: Path | str, expected: str) -> Any:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise WrongArgument(f"{option}: there is no file {str(file)!r}") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{option}: {file}: expected a NumPy file of {expected}; {error}") from None


def _add(options: argparse.Namespace, console: Console) -> int:
    source = _open(options)
    logits, means, variances = (
        None if file is None else _array(f"--{option}", file, expected)
        for option, file, expected in (
            ("logits", options.logits, "float32 [samples, classes]"),
            ("means", options.means, "floats [samples, numbers]"),
            ("variances", options.variances, "floats [samples, numbers]"),
        )
    )
    needed = "means" if source.task == "regression" else "logits"
    if (means if needed == "means" else logits) is None:
        raise WrongArgument(f"--{needed}: expected a file, because the cache is of {source.task}; got none")
    in_order = options.uids == IN_ORDER
    uids = (
        source.uids
        if in_order
        else _array("--uids", options.uids, f"integers [samples] (or the word {IN_ORDER})")
    )
    wanted = {name: getattr(options, name) for name in ("name", "weight", "max_kl", "max_error", "overwrite")}
    wanted |= {"logits": logits, "uids": uids}
    if means is not None or variances is not None:
        wanted["moments"] = (means, variances)
    with _progress("adding") as progress:
        cache = add_member(source, options.out, **wanted, progress=progress)
    return _written(console, cache)


def _drop(options: argparse.Namespace, console: Console) -> int:
    with _progress("copying") as progress:
        cache = drop_member(
            _open(options), options.out, name=options.name, overwrite=options.overwrite, progress=progress
        )
    return _written(console, cache)


def _reweight(options: argparse.Namespace, console: Console) -> int:
    weights: dict[str, float] = {}
    for name, weight in options.weights:
        if name in weights:
            raise WrongArgument(
                f"weights: expected each member once; got {name!r} twice, {weights[name]:g} and {weight:g}"
            )
        weights[name] = weight
    cache = reweight(_open(options), weights)
    console.print(
        f"[green]✓[/] {cache.path}: "
        f"{', '.join(f'{n} {w:g}' for n, w in zip(cache.names, cache.weights, strict=True))}"
    )
    if manner().json:
        print_json(about(cache))
    return 0


def _convert(options: argparse.Namespace, console: Console) -> int:
    wanted = {name: getattr(options, name) for name in _CONVERT}
    with _progress("converting") as progress:
        cache = convert(_open(options), options.out, **wanted, progress=progress)
    return _written(console, cache)


def _export(options: argparse.Namespace, console: Console) -> int:
    from ensdistill.cache.export import export_parquet

    with _progress("exporting") as progress:
        rows = export_parquet(_open(options), options.file, progress=progress)
    console.print(f"[green]✓[/] {options.file}: {rows} rows")
    if manner().json:
        print_json({"file": str(options.file), "rows": rows})
    return 0


def _push(options: argparse.Namespace, console: Console) -> int:
    from ensdistill.cache.remote import upload

    with _progress("sending", "bytes") as progress:
        upload(_there(options.folder), options.url, overwrite=options.overwrite, progress=progress)
    console.print(f"[green]✓[/] {options.url}")
    if manner().json:
        print_json({"url": options.url})
    return 0


def _pull(options: argparse.Namespace, console: Console) -> int:
    from ensdistill.cache.remote import download

    with _progress("fetching", "bytes") as progress:
        download(options.url, options.folder, overwrite=options.overwrite, progress=progress)
    return _written(console, _open(options))
