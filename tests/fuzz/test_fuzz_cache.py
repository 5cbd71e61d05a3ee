"""Caches damaged and malformed at random.

``ENSDISTILL_FUZZ_ROUNDS=200000 python -m pytest tests/fuzz`` is the long form: 20 000 damaged files, 100 000
manifests, as many by coverage (where atheris is installed), 100 000 shards, 600 000 files for the native
reader. The counts stand at the end of the output.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("ENSDISTILL_FUZZ_ROUNDS", "500"))
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
SHARDS = HERE.parent.parent / "csrc" / "shards"


def fuzz(job: str, rounds: int) -> dict[str, int]:
    command = [sys.executable, str(HERE / "cache_fuzzer.py"), job, str(rounds), "0"]
    return run(command)


def run(command: list[str], **more: str) -> dict[str, int]:
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **more})
    assert done.returncode == 0, done.stderr[
        -3000:
    ]  # -14: a round that hung; MemoryError: one that wanted too much
    return json.loads(done.stdout)


def test_every_damage_is_found(figures):
    rounds = max(500, ROUNDS // 10)
    result = fuzz("damages", rounds)
    figures(
        f"damages: {result['flipped']} bits flipped, {result['cut']} files cut, {result['extended']} "
        "extended, all over the "
        f"{result['files']} files of {result['caches']} caches; {result['found']} of {result['damaged']} "
        "found"
    )
    assert result["found"] == result["damaged"] == rounds
    assert min(result["flipped"], result["cut"], result["extended"]) > 0.02 * rounds


@pytest.mark.skipif(sys.platform != "linux", reason="memory can't be limited")
@pytest.mark.parametrize("job", ["manifests", "shards"])
def test_malformed_files_are_refused_or_harmless(job, figures):
    rounds = ROUNDS // 2
    result = fuzz(job, rounds)
    figures(
        f"{job}: {result['fuzzed']} malformed ones, {result['refused']} refused, the others read without "
        "harm; no crash, no hang"
    )
    assert result["fuzzed"] == rounds
    assert 0.3 * rounds < result["refused"]  # most changes are of something that matters
    assert result["refused"] < rounds  # and some are not: the fuzzer gets through the checksums


def test_manifests_guided_by_coverage(tmp_path, figures):
    pytest.importorskip("atheris", reason="pip install 'ensdistill[fuzz]'")
    rounds = ROUNDS // 2
    result = run([sys.executable, str(HERE / "guided_fuzzer.py"), str(rounds), "1"], TMPDIR=str(tmp_path))
    figures(
        f"manifests by coverage: {result['fuzzed']}, {result['refused']} refused, the others read without "
        "harm; no crash, no hang"
    )
    assert result["fuzzed"] == rounds
    assert 0.3 * rounds < result["refused"] < rounds


def compiled(compiler, folder, *flags):
    """The native reader's fuzzer, and how its compilation ended."""
    program, sources = (
        folder / "fuzzer",
        [HERE / "reader_fuzzer.cpp", SHARDS / "reader.cpp", SHARDS / "crc32c.cpp"],
    )
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g",
        "-pthread",
        *flags,
        *map(str, sources),
        "-o",
        str(program),
    ]
    return program, subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="no g++ with sanitizers")
def test_the_native_reader_bears_any_file(tmp_path, figures):
    program, built = compiled("g++", tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), str(3 * ROUNDS), "0", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert min(result.values()) > ROUNDS / 10  # every way out is taken
    figures(
        f"native reader under the sanitizers: {result['fuzzed']} files, {result['refused']} refused, "
        f"{result['damaged']} found damaged, "
        f"{result['gathered']} gathered"
    )


@pytest.mark.skipif(
    shutil.which("clang++") is None or sys.platform != "linux", reason="no clang++, which has libFuzzer"
)
def test_files_for_the_native_reader_guided_by_coverage(tmp_path, figures):
    program, built = compiled(
        "clang++", tmp_path, "-DENSDISTILL_LIBFUZZER", "-fsanitize=fuzzer,address,undefined"
    )
    if built.returncode and "clang_rt" in built.stderr:
        pytest.skip("clang++ without its libFuzzer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [str(program), f"-runs={ROUNDS}", "-seed=1", "-timeout=20"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures(f"native reader by coverage: {ROUNDS} files")
