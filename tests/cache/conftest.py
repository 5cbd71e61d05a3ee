"""Caches that several files read, and copies of them that a test may harm."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_helpers import digits
from own_codec_helpers import NIBBLES
from uid_helpers import SMALL, own_rows

from ensdistill.cache import TargetCache, cache_targets


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sound cache of digits; to be read only."""
    folder = tmp_path_factory.mktemp("original") / "cache"
    cache_targets(*digits(), folder, shard_rows=64)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def uid_cache(tmp_path_factory: pytest.TempPathFactory) -> TargetCache:
    """A sound cache of rows that have their own uids; to be read only."""
    return cache_targets(*own_rows(), tmp_path_factory.mktemp("own") / "cache", codec="fp32", **SMALL)


@pytest.fixture
def uid_copy(uid_cache: TargetCache, tmp_path: Path) -> Path:
    shutil.copytree(uid_cache.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def own_codecs_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with the codecs, in a folder on the path; it is not imported yet."""
    folder = tmp_path / "path"
    folder.mkdir()
    more = Path(__file__).with_name("more_codecs.py").read_text(encoding="utf-8")
    (folder / "own_codecs.py").write_text(NIBBLES + more)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    sys.modules.pop("own_codecs", None)
    yield "own_codecs"
    sys.modules.pop("own_codecs", None)
