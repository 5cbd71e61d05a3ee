"""The native shard reader by itself: checksums, gathering, refusals, forks and threads."""

import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill import _shards

BLOCK = 256
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def crc32c(data: bytes) -> int:
    """Bit by bit, from the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_known_value():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert _shards.crc32c_software(b"123456789") == 0xE3069283
    assert _shards.checksums(b"123456789", 16).tolist() == [0xE3069283]
    assert zlib.crc32(b"123456789") != 0xE3069283  # the other polynomial


@given(st.binary(max_size=300), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_checksums_of_blocks(data, block):
    assert _shards.checksums(data, block).tolist() == [
        crc32c(data[i : i + block]) for i in range(0, len(data), block)
    ]


@pytest.mark.parametrize(
    "size", [4095, 12_287, 12_288, 12_289, 36_864, 65_536, 100_003]
)  # around the instruction's three lanes
def test_the_instruction_is_the_software(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert _shards.checksums(data, size).tolist() == [_shards.crc32c_software(data.tobytes())]
    assert _shards.crc32c_implementation() in ("instruction", "software")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert "sse4_2" not in flags or _shards.crc32c_implementation() == "instruction"


class Shard:
    """A file of records as the reader wants it."""

    def __init__(self, folder, rows=50, width=24, lengths=None, offsets=None, begin=64):
        self.rows, self.width, self.lengths, self.begin = rows, width, lengths, begin
        self.records = rows if lengths is None else int(np.sum(lengths))
        self.body = np.random.default_rng(rows).integers(0, 256, (self.records, width), np.uint8)
        data = self.body.tobytes()
        if lengths is not None:
            data += (
                (np.concatenate([[0], np.cumsum(lengths)]) if offsets is None else offsets)
                .astype("<u8")
                .tobytes()
            )
        self.sums = _shards.checksums(data, BLOCK)
        self.path = Path(folder) / "shard"
        self.path.write_bytes(bytes(begin) + data + self.sums.tobytes())

    def reader(self, threads=1):
        return _shards.Reader(self.width, self.rows, 1, BLOCK, self.lengths is not None, threads)

    def map(self, reader, **changes):
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            arguments = {
                "file_bytes": size,
                "data_begin": self.begin,
                "records": self.records,
                "rows": self.rows,
                "checksums": self.sums,
            }
            return reader.map(shard=0, fd=file.fileno(), **{**arguments, **changes})


@pytest.mark.parametrize("threads", [1, 3])
def test_gather_copies_the_records_at_the_given_places(tmp_path, threads):
    shard = Shard(tmp_path, rows=2000, width=1000)
    reader = shard.reader(threads)
    ids = np.random.default_rng(0).integers(0, 2000, 3000)
    assert reader.missing(ids) == [0]
    assert shard.map(reader) is None
    assert reader.missing(ids) == []
    out = np.empty((3000, 1000), np.uint8)  # 3 MB: every thread has a share
    assert reader.gather(ids, out) is None
    np.testing.assert_array_equal(out, shard.body[ids])


@pytest.mark.parametrize("threads", [1, 3])
def test_the_damaged_block_is_named_and_the_others_are_read(tmp_path, threads):
    shard = Shard(tmp_path, rows=2000, width=1000)
    data = bytearray(shard.path.read_bytes())
    data[64 + 1_000_000] ^= 16
    shard.path.write_bytes(data)
    reader = shard.reader(threads)
    shard.map(reader)
    out = np.empty((999, 1000), np.uint8)
    assert reader.gather(np.arange(999), out) is None
    block = 1_000_000 // BLOCK
    for _ in range(2):
        assert reader.gather(np.arange(1001, 2), np.empty((0, 1000), np.uint8)) is None
        assert reader.gather(np.arange(2000), np.empty((2000, 1000), np.uint8)) == (
            0,
            block * BLOCK,
            (block + 1) * BLOCK,
        )


@given(st.integers(1, 2**62), st.integers(0, 9), st.integers(-2, 2))
@settings(max_examples=200, deadline=None)
def test_an_id_belongs_to_the_shard_that_division_names(rows, shard, off):
    reader = _shards.Reader(1, rows, 10, BLOCK, False, 1)
    wanted = rows * shard + off
    if 0 <= wanted < min(10 * rows, 2**63):
        assert reader.missing(np.array([wanted])) == [wanted // rows]
    with pytest.raises(ValueError, match="expected positive sizes"):
        _shards.Reader(1, -rows, 10, BLOCK, False, 1)


def test_sequences(tmp_path):
    lengths = np.array([3, 1, 7, 2, 5])
    shard = Shard(tmp_path, rows=5, lengths=lengths)
    reader = shard.reader()
    assert shard.map(reader) is None
    ids = np.array([4, 0, 0, 2])
    assert reader.lengths(ids).tolist() == [5, 3, 3, 7]
    out = np.empty((18, 24), np.uint8)
    assert reader.gather(ids, out) is None
    starts = np.cumsum(lengths) - lengths
    np.testing.assert_array_equal(
        out, np.concatenate([shard.body[starts[i] : starts[i] + lengths[i]] for i in ids])
    )
    with pytest.raises(ValueError, match="out: expected room for exactly the records asked for"):
        reader.gather(ids, out[:-1])


@pytest.mark.parametrize(
    "offsets", [[0, 4, 3, 11, 13, 18], [1, 3, 4, 11, 13, 18], [0, 3, 4, 11, 13, 19], [0, 3, 3, 11, 13, 18]]
)
def test_offsets_that_do_not_rise_are_refused(tmp_path, offsets):
    shard = Shard(tmp_path, rows=5, lengths=np.array([3, 1, 7, 2, 5]), offsets=np.array(offsets))
    with pytest.raises(ValueError, match="offsets: expected them to rise"):
        shard.map(shard.reader())


def test_damaged_offsets_are_found_when_the_shard_is_mapped(tmp_path):
    shard = Shard(tmp_path, rows=5, lengths=np.array([3, 1, 7, 2, 5]))
    data = bytearray(shard.path.read_bytes())
    data[64 + shard.records * 24 + 8] ^= 1
    shard.path.write_bytes(data)
    assert shard.map(shard.reader()) == (0, 18 * 24, 18 * 24 + 48)


@pytest.mark.parametrize(
    "changes",
    [
        {"file_bytes": 10**15},
        {"file_bytes": 0},
        {"data_begin": 0},
        {"data_begin": 2**62},
        {"records": 2**62, "rows": 2**62},
        {"records": 51},
        {"rows": 0},
        {"checksums": np.zeros(1, np.uint32)},
    ],
)
def test_parts_that_do_not_fit_the_file_are_refused(tmp_path, changes):
    shard = Shard(tmp_path)
    with pytest.raises(ValueError, match=r"expected|more than the file holds"):
        shard.map(shard.reader(), **changes)


def test_ids_and_buffers_are_checked(tmp_path):
    shard = Shard(tmp_path)
    reader = shard.reader()
    out = np.empty((1, 24), np.uint8)
    with pytest.raises(IndexError, match="not mapped"):
        reader.gather(np.array([3]), out)
    shard.map(reader)
    for wrong in (-1, 50, 2**62):
        with pytest.raises(ValueError, match="ids: outside of the shards"):
            reader.gather(np.array([wrong]), out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        reader.gather(np.array([3]), out)


def test_a_buffer_is_recycled_only_when_no_array_uses_it():
    size = 3 << 20
    first = np.frombuffer(_shards.Buffer(size), np.uint8)
    first[:] = 7
    second = np.frombuffer(_shards.Buffer(size), np.uint8)
    second[:] = 8
    assert (first == 7).all()
    address, view = first.ctypes.data, first[10:20]
    del first
    third = np.frombuffer(_shards.Buffer(size), np.uint8)
    assert third.ctypes.data != address  # a view is still there
    del view
    fourth = np.frombuffer(_shards.Buffer(size), np.uint8)
    assert fourth.ctypes.data == address


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_read_on(tmp_path):
    """A data loader's workers are forked from a process whose reader has threads, which the children don't
    have."""
    shard = Shard(tmp_path, rows=2000, width=1000)
    reader = shard.reader(3)
    shard.map(reader)
    out, ids = np.empty((2000, 1000), np.uint8), np.arange(2000)
    reader.gather(ids, out)
    child = os.fork()
    if child == 0:
        out[:] = 0
        sound = reader.gather(ids, out) is None and bool((out == shard.body).all())
        del reader  # joins no threads that are not there
        os._exit(0 if sound else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_gather_while_shards_come_and_go(tmp_path):
    shard = Shard(tmp_path, rows=500, width=1000)
    reader = shard.reader(2)
    wrong, stop = [], threading.Event()

    def read():
        out, ids = np.empty((500, 1000), np.uint8), np.arange(500)
        while not stop.is_set():
            try:
                reader.gather(ids, out)
            except IndexError:  # not mapped just now
                continue
            if not (out == shard.body).all():
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    for _ in range(200):
        reader.unmap_all()
        shard.map(reader)
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong


def test_torch_is_not_loaded():
    script = "import sys, ensdistill.cache; from ensdistill import _shards; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
