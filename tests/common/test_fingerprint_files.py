"""Digests of values and of code, and files that are whole or not there at all."""

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ensdistill.common.files import (
    FolderLocked,
    atomic_path,
    exclusive,
    read_json,
    write_arrays,
    write_bytes,
    write_json,
)
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import code_parts, source_digest


@dataclass
class Point:
    x: int
    y: int


class Here:
    """For source_digest."""


VALUES = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    1.5,
    "",
    "1",
    "None",
    "true",
    b"",
    b"1",
    [b"", b"bytes"],
    [b"bytes", b""],
    [],
    [[]],
    {},
    [1],
    [1, 2],
    [2, 1],
    [[1], 2],
    [[1, 2]],
    ["ab"],
    ["a", "b"],
    ["a", ["b"]],
    'a";str:"b',
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {"a": None},
    ["a", 1],
    {"a": {"b": 1}},
    {"a": {}, "b": 1},
    np.zeros(4, np.float32),
    np.zeros(4, np.int32),
    np.zeros((2, 2), np.float32),
    np.zeros(0, np.float32),
    np.zeros((0, 3), np.float32),
    np.arange(4, dtype=np.int32),
    np.array(["a", "b"]),
    np.array(0.0),
    torch.zeros(4),
    torch.zeros(2, 2),
    torch.zeros(4, dtype=torch.bfloat16),
    torch.arange(4),
    float("nan"),
    float("inf"),
]


def test_different_values_have_different_digests():
    digests = [digest(value) for value in VALUES]
    assert len(set(digests)) == len(VALUES), [
        VALUES[i] for i, d in enumerate(digests) if digests.count(d) > 1
    ]
    assert all(len(d) == 32 and int(d, 16) >= 0 for d in digests)


def test_equal_content_has_equal_digests():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = torch.arange(12.0).reshape(3, 4)
    pairs = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, OrderedDict(b={"d": 3, "c": 2}, a=1)),
        ([1, "x"], (1, "x")),
        (array, np.asfortranarray(array)),
        (array[:, ::2], array[:, ::2].copy()),
        (tensor.T, tensor.T.contiguous()),
        (tensor, tensor.clone().requires_grad_()),
        (Path("a/b"), "a/b"),
        (np.float64(1.5), 1.5),
        (np.int32(3), 3),
        (Point(1, 2), {"x": 1, "y": 2}),
    ]
    for left, right in pairs:
        assert digest(left) == digest(right)


def test_the_digest_is_the_same_in_another_process():
    value = {"b": [1, 2.5, None, True], "a": "ü", "c": {"x": "y"}}
    code = f"from ensdistill.common.fingerprint import digest; print(digest({value!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == digest(value)


def test_every_element_counts():
    array = np.zeros(1000, np.float32)
    digests = {digest(array)}
    for i in (0, 1, 500, 999):
        changed = array.copy()
        changed[i] = 1e-30
        digests.add(digest(changed))
    assert len(digests) == 5


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, Here, iter([])])
def test_a_kind_without_stable_bytes_is_refused(value):
    with pytest.raises(TypeError, match=r"digest: expected plain data, arrays or tensors; got \w+\.\w+"):
        digest({"a": [value]})


def test_an_array_of_objects_is_refused():
    with pytest.raises(TypeError, match="array of Python objects has no stable bytes"):
        digest(np.array([{}, None]))


CODE = '''
import statistics
import helpers
from helpers import doubled as again

SCALE = 2.0
TABLE = {"a": 1}


def shared(x):
    return x + SCALE


class Base:
    factor = 3

    def run(self, x, *, times=1):
        return shared(x) * self.factor * times


class Model(Base):
    """A model."""

    @property
    def size(self):
        return TABLE["a"]

    def run(self, x):
        # the sum of three
        return super().run(x) + helpers.halved(x) + again(x) + self.inner(x)

    @staticmethod
    def inner(x):
        return [later(y) for y in x]


def later(x):
    return statistics.mean([x])


def train(model):
    return model.run([1])
'''
HELPERS = (
    "def halved(x):\n    return x / 2\n\n\ndef doubled(x):\n    return 2 * x\n\n\ndef other(x):\n    return "
    "x\n"
)


def loaded_parts(folder, code, helpers):
    """The parts of the code that the file's Model uses."""
    (folder / "used_model.py").write_text(code)
    (folder / "helpers.py").write_text(helpers)
    for name in ("used_model", "helpers"):
        sys.modules.pop(name, None)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    return code_parts(importlib.import_module("used_model").Model)


UNUSED = [
    ("def train(model):", "class Unrelated:\n    pass\n\n\ndef train(model, epochs=3):"),
    ("return model.run([1])", "return model.run([2])"),
    ("# the sum of three", "# the sum of three of them\n        # (as it was)"),
    ('"""A model."""', '"""Another text.\n\n    Longer."""'),
    ("    def run(self, x, *, times=1):", '    def run(self, x, *, times=1):\n        """Runs."""'),
    ("import statistics", "import os\nimport statistics"),
]
EDITS = [
    ("SCALE = 2.0", "SCALE = 3.0", ["value of used_model.SCALE"]),
    ('{"a": 1}', '{"a": 2}', ["value of used_model.TABLE"]),
    ("x + SCALE", "x - SCALE", ["source of used_model.shared"]),
    ("factor = 3", "factor = 4", ["source of used_model.Base"]),
    ("times=1", "times=2", ["source of used_model.Base.run"]),
    ('return TABLE["a"]', 'return TABLE["b"]', ["source of used_model.Model.size"]),
    ("[later(y) for", "[later(-y) for", ["source of used_model.Model.inner"]),
    ("mean([x])", "median([x])", ["source of used_model.later"]),
    ("doubled as again", "halved as again", ["source of helpers.doubled", "value of used_model.again"]),
]


def test_code_that_is_used_counts_and_other_code_does_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = loaded_parts(tmp_path, CODE, HELPERS)
    for old, new in UNUSED:
        assert CODE.count(old) == 1
        assert loaded_parts(tmp_path, CODE.replace(old, new), HELPERS) == before, new
    assert loaded_parts(tmp_path, CODE, HELPERS.replace("return x\n", "return -x\n")) == before
    for old, new, expected in EDITS:
        assert CODE.count(old) == 1
        now = loaded_parts(tmp_path, CODE.replace(old, new), HELPERS)
        assert sorted(name for name in {**now, **before} if now.get(name) != before.get(name)) == expected, (
            new
        )
    now = loaded_parts(tmp_path, CODE, HELPERS.replace("x / 2", "x / 3"))
    assert [name for name in now if now[name] != before[name]] == ["source of helpers.halved"]


def test_a_method_that_was_replaced_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = loaded_parts(tmp_path, CODE, HELPERS)
    model = sys.modules["used_model"].Model
    monkeypatch.setattr(model, "run", lambda self, x: x)
    assert code_parts(model) != before


def test_a_file_edited_after_its_import_does_not_count(tmp_path, monkeypatch):
    """The process still runs the imported code."""
    monkeypatch.syspath_prepend(tmp_path)
    before = loaded_parts(tmp_path, CODE, HELPERS)
    (tmp_path / "used_model.py").write_text("\n\n" + CODE.replace("x + SCALE", "x - SCALE"))
    assert code_parts(sys.modules["used_model"].Model) == before


def test_source_digest_is_of_the_code_in_use(monkeypatch):
    assert source_digest(Point) == source_digest(Point) != source_digest(Here) != None  # noqa: E711
    assert source_digest(int) is source_digest(len) is source_digest(Path) is None
    before = source_digest(torch.nn.Linear)
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert source_digest(torch.nn.Linear) != before


def test_write_and_read_json(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    assert read_json(path) is None
    write_json(path, {"a": [1, 2.5, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}
    assert [f.name for f in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], object()])
def test_values_that_json_cannot_hold_leave_the_old_file(tmp_path, value):
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert read_json(path) == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x\.json: not a JSON file \(.+\); delete it to have it written again"
    ):
        read_json(path)


def test_write_arrays(tmp_path):
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], "b": np.zeros((0, 3), np.int64)}
    write_arrays(tmp_path / "x.safetensors", arrays, {"made": "here"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "error", [RuntimeError("half way"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")]
)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def fail_half_way() -> None:
        with atomic_path(path) as part:
            part.write_bytes(b"ne")
            assert part.parent == tmp_path
            assert path.read_bytes() == b"old"
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    code = f"""
        import os, signal
        from ensdistill.common.files import atomic_path
        with atomic_path({str(path)!r}) as part:
            part.write_bytes(b"ne")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code).returncode == -9
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")  # its leftover does not disturb
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def fill_the_disk() -> None:
        with atomic_path(path) as part, open("/dev/full", "wb", buffering=0) as full:
            part.write_bytes(b"ne")
            full.write(b"w")

    with pytest.raises(
        OSError, match=r"no space left on the disk of .*; everything finished so far is kept: free some space"
    ) as caught:
        fill_the_disk()
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="finds the name behind a descriptor as Linux tells it"
)
def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """A crash of the machine between the two must not leave a name for bytes that were never written."""
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda d: (calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{d}")).name)), fsync(d))[1],
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(("replace", Path(a).name)), replace(a, b))[1]
    )
    write_bytes(tmp_path / "x", b"new")
    part = f"x.{os.getpid()}.part"
    assert calls == [("fsync", part), ("replace", part), ("fsync", tmp_path.name)]


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def test_a_second_process_is_refused_and_a_crash_frees_the_lock(tmp_path):
    folder = tmp_path / "run"
    code = f"""
        import json, os
        from ensdistill.common.files import FolderLocked, exclusive
        try:
            with exclusive({str(folder)!r}):
                os._exit(7)  # a crash: nothing is released
        except FolderLocked as error:
            print(json.dumps(str(error)))
    """
    with exclusive(folder):
        result = run(code)
        assert (
            json.loads(result.stdout)
            == f"{folder} is being written by another process; wait for it to end, or choose another folder"
        )
    assert run(code).returncode == 7  # free now, taken, and given up by dying
    with exclusive(folder):
        pass


def test_the_lock_is_freed_by_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), exclusive(tmp_path):
        raise RuntimeError("half way")
    with exclusive(tmp_path), pytest.raises(FolderLocked), exclusive(tmp_path):
        pass
