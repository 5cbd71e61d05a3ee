"""Caches at a URL: fsspec's memory file system, a folder, and a local server of the S3 protocol (where moto
is installed)."""

import pickle
import re
import shutil
import threading

import fsspec
import numpy as np
import pytest
from cache_helpers import contents, digits

from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheMismatch,
    TargetCache,
    cache_targets,
    remote,
)
from ensdistill.cache.files import transfer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return cache_targets(*digits(), tmp_path_factory.mktemp("original") / "cache", shard_rows=32)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another cache of the same samples, of fewer shards."""
    return cache_targets(*digits(), tmp_path_factory.mktemp("other") / "cache", codec="fp16", shard_rows=64)


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("s3fs", reason="pip install 'ensdistill[s3]'")
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
    before = fsspec.config.conf.get("s3", {})
    fsspec.config.conf["s3"] = options
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    fsspec.config.conf["s3"] = before
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def base(request, tmp_path):
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return f"memory://{tmp_path}" if request.param == "memory" else f"file://{tmp_path}/remote"


def open_at(url):
    system, path = fsspec.core.url_to_fs(url)
    return system, path


def test_there_and_back(original, base, tmp_path):
    remote.upload(original.path, base)
    cache = TargetCache.open(base, check="full", local=tmp_path / "here")
    np.testing.assert_array_equal(
        cache.gather_records(np.arange(230)), original.gather_records(np.arange(230))
    )
    assert contents(tmp_path / "here") == contents(original.path)
    assert not (tmp_path / "here" / "fetched").exists()
    system, path = open_at(base)
    assert not [name for name in system.ls(path, detail=False) if name.endswith(".part")]


def test_files_that_are_here_are_not_fetched_again(original, base, tmp_path, monkeypatch):
    remote.upload(original.path, base)
    folder = tmp_path / "here"
    TargetCache.open(base, local=folder)
    fetched = []
    plain = remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda *a: fetched.append(a[4]["file"]) or plain(*a))
    TargetCache.open(base, local=folder)
    assert fetched == []
    data = bytearray((folder / "shard-00003.safetensors").read_bytes())
    (folder / "shard-00003.safetensors").write_bytes(data[:-1])  # cut: only that one is fetched
    TargetCache.open(base, check="full", local=folder)
    assert contents(folder) == contents(original.path)


def test_shards_can_be_fetched_as_they_are_read(original, other, base, tmp_path):
    remote.upload(original.path, base)
    folder = tmp_path / "here"
    cache = TargetCache.open(base, local=folder, fetch="as_read")
    assert contents(folder).keys() == {"manifest.json"}
    expected = original.gather_records(np.arange(230))
    np.testing.assert_array_equal(cache.gather_records([100, 5]), expected[[100, 5]])
    assert contents(folder).keys() == {
        "manifest.json",
        "shard-00000.safetensors",
        "shard-00003.safetensors",
    }
    with pytest.raises(CacheIncomplete, match=r"shard-00001.safetensors"):
        TargetCache.open(folder)
    copied = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copied.gather_records([40]), expected[[40]])
    system, path = open_at(base)
    system.rm_file(f"{path}/shard-00002.safetensors")
    with pytest.raises(CacheIncomplete, match=r"shard-00002.safetensors: no such file"):
        cache.gather([70])
    remote.upload(original.path, base)
    TargetCache.open(base, local=folder, fetch="as_read", check="full")
    assert contents(folder) == contents(original.path)

    # Files of the earlier copy have the names of the new cache's.
    remote.upload(other.path, base, overwrite=True)
    cache = TargetCache.open(base, local=folder, fetch="as_read", overwrite=True)
    assert contents(folder).keys() == {"manifest.json"}
    np.testing.assert_array_equal(cache.gather_records([1]), other.gather_records([1]))
    for fetch, path, message in (
        ("some", base, "fetch: expected 'all' or 'as_read'; got 'some'"),
        ("as_read", folder, "fetch: 'as_read' is for a URL"),
    ):
        with pytest.raises(ValueError, match=message):
            TargetCache.open(path, fetch=fetch)


def test_the_error_of_a_damaged_copy_names_the_remedy(original, base, tmp_path):
    remote.upload(original.path, base)
    folder = tmp_path / "here"
    TargetCache.open(base, local=folder)
    shard = folder / "shard-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    advice = (
        rf"{re.escape(str(shard))}: .* this is a local copy: delete the file, and opening {re.escape(base)} "
        rf"fetches it again"
    )
    for read in (
        lambda: TargetCache.open(base, local=folder).gather([96]),
        lambda: TargetCache.open(base, local=folder, check="full"),
    ):
        with pytest.raises(CacheCorrupt, match=advice):
            read()
    shard.unlink()
    TargetCache.open(base, local=folder, check="full")
    shard.write_bytes(data)
    with pytest.raises(CacheCorrupt, match="delete the cache and build it again"):
        TargetCache.open(folder, check="full")


def test_progress_counts_bytes_and_files_that_are_there_already(original, base, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_PROGRESS_EVERY", 0.001)
    total = sum(shard["bytes"] for shard in original.manifest["shards"])
    for copy in (
        lambda **how: remote.upload(original.path, base, **how),
        lambda **how: remote.download(base, tmp_path / "here", **how),
    ):
        for _ in range(2):
            calls = []
            copy(progress=lambda *call, calls=calls: calls.append((*call, threading.current_thread())))
            done = [call[0] for call in calls]
            assert all(call[1:] == (total, threading.main_thread()) for call in calls)
            assert done == sorted(done)
            assert done[-1] == total
            (tmp_path / "here" / "manifest.json").unlink(
                missing_ok=True
            )  # a copy that needs nothing but that

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.download(base, tmp_path / "none", progress=stop)


def test_progress_is_reported_while_a_shard_is_copied(original, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_CHUNK", 64)
    remote.upload(original.path, url := f"memory://{tmp_path}")
    told = []
    entry = original.manifest["shards"][0]
    transfer.fetch(*open_at(url), url, tmp_path / "here", entry, told.append)
    assert told == [*range(64, entry["bytes"], 64), entry["bytes"]]
    sent = []
    transfer.send(open_at(url)[0], original.path / entry["file"], f"{tmp_path}/again", sent.append)
    assert sent == told


def test_files_that_arrive_damaged_are_never_kept(original, base, tmp_path):
    remote.upload(original.path, base)
    system, path = open_at(base)
    name = "shard-00002.safetensors"
    data = bytearray((original.path / name).read_bytes())
    data[5000] ^= 1
    for damaged in (bytes(data), bytes(data[:-7]), bytes(data) + b"more"):
        system.pipe_file(f"{path}/{name}", damaged)
        with pytest.raises(CacheCorrupt, match=rf"{name}: the bytes are not those that the manifest names"):
            remote.download(base, tmp_path / "here")
        assert not (tmp_path / "here" / name).exists()
        with pytest.raises(CacheIncomplete):
            TargetCache.open(tmp_path / "here")
    remote.upload(original.path, base)  # mends it: files with other bytes are sent again
    assert len(TargetCache.open(base, check="full", local=tmp_path / "here")) == 230
    system.rm(f"{path}/{name}")
    with pytest.raises(CacheIncomplete, match=rf"{name}: no such file"):
        remote.download(base, tmp_path / "other")


def test_nothing_there(base, tmp_path):
    with pytest.raises(CacheIncomplete, match=r"no manifest\.json: no cache has been written there"):
        TargetCache.open(f"{base}/nowhere", local=tmp_path)
    with pytest.raises(CacheError, match="nosuchprotocol"):
        TargetCache.open("nosuchprotocol://x", local=tmp_path)
    with pytest.raises(ValueError, match="local: is for a URL"):
        TargetCache.open(tmp_path, local=tmp_path)


def test_a_damaged_cache_is_not_published(original, tmp_path):
    shutil.copytree(original.path, tmp_path / "c")
    data = bytearray((tmp_path / "c" / "shard-00001.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "c" / "shard-00001.safetensors").write_bytes(data)
    with pytest.raises(CacheCorrupt, match="it was not sent"):
        remote.upload(tmp_path / "c", f"memory://{tmp_path}/x")
    assert not fsspec.filesystem("memory").exists(f"{tmp_path}/x/manifest.json")


@pytest.mark.parametrize(("failures", "succeeds"), [(3, True), (4, False)])
def test_a_network_that_fails_now_and_then(original, tmp_path, monkeypatch, failures, succeeds):
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    url = f"memory://{tmp_path}"
    remote.upload(original.path, url)
    system, _ = open_at(url)
    left, plain = {"shard-00004.safetensors": failures}, type(system).open

    def flaky(self, path, *arguments, **options):
        name = path.rsplit("/", 1)[-1]
        if left.get(name, 0) > 0:
            left[name] -= 1
            raise ConnectionResetError("the other side has gone")
        return plain(self, path, *arguments, **options)

    monkeypatch.setattr(type(system), "open", flaky)
    if succeeds:
        assert len(TargetCache.open(url, check="full", local=tmp_path / "here")) == 230
    else:
        with pytest.raises(CacheError, match=r"ConnectionResetError: the other side has gone \(4 tries\)"):
            remote.download(url, tmp_path / "here")
        assert not (tmp_path / "here" / "manifest.json").exists()


def test_processes_of_one_machine_fetch_once(original, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    url = f"memory://{tmp_path}"
    remote.upload(original.path, url)
    fetched, plain = [], remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda *a: fetched.append(1) or plain(*a))
    threads = [threading.Thread(target=remote.download, args=(url, tmp_path / "here")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == len(original.manifest["shards"])
    assert len(TargetCache.open(tmp_path / "here", check="full")) == 230


def test_the_default_place_is_the_user_s_cache_folder(original, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"memory://{tmp_path}/c"
    remote.upload(original.path, url)
    assert TargetCache.open(url).path.is_relative_to(tmp_path / "ensdistill")


REFUSED = (
    r"the folder holds a cache of something else; choose another folder, or overwrite it .*\n  codec: the "
    r"cache has '{}', expected '{}'"
)


def test_another_cache_in_a_folder_is_replaced_only_with_overwrite(original, other, tmp_path):
    url = f"memory://{tmp_path}"
    remote.upload(other.path, url)
    shutil.copytree(original.path, folder := tmp_path / "mine")
    for pull in (
        lambda **how: remote.download(url, folder, **how),
        lambda **how: TargetCache.open(url, local=folder, **how),
    ):
        with pytest.raises(
            CacheMismatch, match=re.escape(str(folder)) + ": " + REFUSED.format("uint8", "fp16")
        ) as caught:
            pull()
        assert not any("shards" in line or "statistics" in line for line in caught.value.differences)
        assert contents(folder) == contents(original.path)
        pull(overwrite=True)
        assert contents(folder) == contents(other.path)  # no shard of the other is left
        pull()  # the same again
        shutil.rmtree(folder)
        shutil.copytree(original.path, folder)
    with pytest.raises(ValueError, match="overwrite: is for the local copy of a URL"):
        TargetCache.open(folder, overwrite=True)


def test_an_unfinished_or_damaged_cache_in_a_folder_is_replaced_only_with_overwrite(
    original, other, tmp_path
):
    url, unfinished = f"memory://{tmp_path}", tmp_path / "unfinished"
    remote.upload(other.path, url)

    def stop(done, total):
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_targets(*digits(), unfinished, shard_rows=32, progress=stop)
    before = contents(unfinished)
    with pytest.raises(CacheMismatch, match=REFUSED.format("uint8", "fp16")):
        remote.download(url, unfinished)
    assert contents(unfinished) == before
    shutil.copytree(original.path, damaged := tmp_path / "damaged")
    (damaged / "manifest.json").write_bytes((damaged / "manifest.json").read_bytes()[:-9])
    before = contents(damaged)
    with pytest.raises(
        CacheCorrupt, match=r"manifest\.json: not a JSON file .*; choose another folder, or overwrite it"
    ):
        remote.download(url, damaged)
    assert contents(damaged) == before
    for folder in (unfinished, damaged):
        remote.download(url, folder, overwrite=True)
        assert contents(folder) == contents(other.path)
    (damaged / "shard-00001.safetensors").unlink()
    (damaged / "shard-00001.safetensors").mkdir()
    with pytest.raises(
        CacheError, match=r"shard-00001\.safetensors: expected a file of the cache, or nothing; got a folder"
    ):
        remote.download(url, damaged, overwrite=True)


def test_an_overwriting_pull_that_is_interrupted_leaves_an_unfinished_cache(original, other, tmp_path):
    url = f"memory://{tmp_path}"
    remote.upload(other.path, url)
    shutil.copytree(original.path, folder := tmp_path / "mine")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.download(url, folder, overwrite=True, progress=stop)
    with pytest.raises(CacheIncomplete):
        TargetCache.open(folder)
    assert (
        len(TargetCache.open(url, local=folder, check="full")) == 230
    )  # the overwriting was requested, so no other cache is left to protect


def test_the_package_s_own_copy_follows_the_url(original, other, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    url = f"memory://{tmp_path}"
    remote.upload(original.path, url)
    assert TargetCache.open(url).manifest["codec"] == "uint8"
    remote.upload(other.path, url, overwrite=True)
    cache = TargetCache.open(url, check="full")
    assert contents(cache.path) == contents(other.path)


def test_another_cache_at_a_url_is_replaced_only_with_overwrite(original, other, base, tmp_path, monkeypatch):
    system, path = open_at(base)
    remote.upload(original.path, base)
    remote.upload(original.path, base)
    with pytest.raises(CacheMismatch, match=re.escape(base) + ": " + REFUSED.format("uint8", "fp16")):
        remote.upload(other.path, base)
    assert len(TargetCache.open(base, check="full", local=tmp_path / "before")) == 230
    shutil.copytree(other.path, damaged := tmp_path / "damaged")
    (damaged / "shard-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(CacheCorrupt, match="it was not sent"):
        remote.upload(damaged, base, overwrite=True)
    assert len(TargetCache.open(base, check="full", local=tmp_path / "still")) == 230

    plain, seen = remote.send, []

    def look(*arguments):
        if arguments[1].name != "manifest.json":
            with pytest.raises(CacheIncomplete, match=r"no manifest\.json"):
                remote.download(base, tmp_path / "between")
            seen.append(arguments[1].name)
        plain(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(remote, "send", look)
        remote.upload(other.path, base, overwrite=True)
    assert len(seen) == 4
    assert contents(remote.download(base, tmp_path / "after")) == contents(other.path)
    remote.upload(other.path, base)
    system.pipe_file(f"{path}/manifest.json", b"{")
    with pytest.raises(
        CacheCorrupt, match=r"manifest\.json: not a JSON file .*; choose another folder, or overwrite it"
    ):
        remote.upload(other.path, base)
    remote.upload(other.path, base, overwrite=True)
    remote.upload(other.path, f"{base}/new", overwrite=True)  # where there is none
    assert len(TargetCache.open(f"{base}/new", check="full", local=tmp_path / "new")) == 230
