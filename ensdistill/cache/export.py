"""A cache as one Parquet file, for other tools. Needs pyarrow: ``pip install 'ensdistill[parquet]'``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.reader import TargetCache
from ensdistill.common.files import atomic_path, local_path
from ensdistill.common.progress import Progress

_SAMPLES = 4096


def export_parquet(
    cache: TargetCache | Path | str, path: Path | str, *, progress: Progress | None = None
) -> int:
    """Write every record as a row.

    Parameters
    ----------
    cache : TargetCache or path
    path : path
        The file. It appears when it is whole: it is written under another name and renamed.
    progress : callable, optional
        Called with ``(samples done, samples in all)``, each view counted.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ImportError
        pyarrow is missing.
    ValueError
        ``path`` is a URL.
    CacheCorrupt
        A record has other bytes than were written.

    Notes
    -----
    Columns ``uid``, ``view``, ``position`` (within a sequence), ``input_hash``; then those of
    `Codec.columns`: of members ``logits: <name>``, decoded, a list of C float32; of a mixture ``log_probs``,
    of multi-label members ``log_odds``; of top-k ``ids``, ``log_probs``, ``tail_log_mass``; of counts
    ``ids``, ``counts``. Of regression ``mean: <name>`` and ``variance: <name>``, D float64 in the data's
    units. The file's metadata
    ``ensdistill`` is the manifest.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"pyarrow is missing ({error}): pip install 'ensdistill[parquet]'") from error
    import json

    cache = cache if isinstance(cache, TargetCache) else TargetCache.open(cache)
    manifest = {k: v for k, v in cache.manifest.items() if k not in ("shards", "record")}
    writer, rows, done = None, 0, 0
    with atomic_path(local_path(path)) as part:
        for view in range(cache.views):
            for start in range(0, len(cache), _SAMPLES):
                uids = cache.uids[start : start + _SAMPLES]
                columns = {name: _column(pa, values) for name, values in _columns(cache, uids, view).items()}
                table = pa.table(columns).replace_schema_metadata({"ensdistill": json.dumps(manifest)})
                if writer is None:
                    writer = pq.ParquetWriter(part, table.schema)
                writer.write_table(table)
                rows, done = rows + table.num_rows, done + len(uids)
                if progress is not None:
                    progress(done, cache.views * len(cache))
        assert writer is not None  # a cache has at least one sample
        writer.close()
    return rows


def _columns(cache: TargetCache, uids: np.ndarray, view: int) -> dict[str, np.ndarray]:
    fields = cache.layout.views(cache.gather_records(uids, view))
    lengths = cache.lengths(uids, view)
    columns = {
        "uid": np.repeat(uids, lengths),
        "view": np.full(lengths.sum(), view, np.int32),
        "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "input_hash": fields["input_hash"],
    }
    if cache.task == "regression":
        parts = zip(("mean", "variance"), cache.gather_moments(uids, view), strict=True)
        given = [(kind, values) for kind, values in parts if values is not None]
        named = enumerate(m.targets_of(cache.manifest))
        return columns | {f"{kind}: {name}": values[k] for k, name in named for kind, values in given}
    mixture = "log_probs" if cache.task == "classification" else "log_odds"
    names = [mixture] if cache.temperature is not None else [f"logits: {name}" for name in cache.names]
    return columns | cache.codec.columns(fields, len(cache.classes), names)


def _column(pa: Any, values: np.ndarray) -> Any:
    values = np.ascontiguousarray(values)
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
