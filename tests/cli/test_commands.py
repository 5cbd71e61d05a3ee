"""Wrong words on the command line, ``info``, and the commands for a cache."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from job_helpers import flat, run, succeed, write_job


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu", "x.yaml"], "compare, share, info, bench, completion; got 'rnu'. Did you mean `ensdistill run x.yaml`?"),
        (["cach", "info", "x"], "got 'cach'. Did you mean `ensdistill cache info x`?"),
        (["cache", "bild", "x.yaml"], "cache: expected one of build, info, verify, contributions, add-member, drop-member, "
         "reweight, convert, export, push, pull; got 'bild'. Did you mean `ensdistill cache build x.yaml`?"),
        (["cache", "x"], "got 'x'.\n`ensdistill cache --help` shows the commands."),
        (["--versoin", "x"], "got '--versoin'. Did you mean `ensdistill --version`?"),
        # The verb is missing.
        (["my digits.yml"], "got 'my digits.yml'. Did you mean `ensdistill run 'my digits.yml'`?"),
        ([__file__], f"got '{__file__}'. Did you mean `ensdistill run {__file__}`?"),
        (["--seeds", "2", "a.yaml"], "got '--seeds'. Did you mean `ensdistill run a.yaml --seeds 2`?"),
        (["run"], "run: expected a CONFIG file, for example: ensdistill run examples/digits.yaml"),
        (["distill", "--seeds", "2"], "distill: expected a CONFIG file"),
        (["run", "no/such.yaml"], "run: CONFIG: there is no file 'no/such.yaml'"),
        (["run", "--config=no/such.yaml"], "run: CONFIG: there is no file 'no/such.yaml'"),
        (["info", "foo"], "info: expected no arguments; got 'foo'"),
        # The options of other commands.
        (["cache", "info"], "cache info: the following arguments are required: FOLDER\n`ensdistill cache info --help`"),
        (["cache", "verify", "a", "b", "c"], "cache verify: expected no more arguments; got 'b' 'c'"),
        (["cache", "convert", "a", "--codc", "fp16"], "cache convert: there is no option '--codc'. Did you mean '--codec'?"),
        (["cache", "convert", "a", "b", "--codec", "fp16", "--seed", "x"], "--seed: expected a whole number; got 'x'"),
        (["cache", "convert", "a", "b", "--codec=fp16", "--max-kl", "x"], "--max-kl: expected a number; got 'x'"),
        (["cache", "verify", "a", "--against", "2"], "--against-teachers: expected a share of the samples such as 0.1%"),
        (["bench", "--quik"], "bench: there is no option '--quik'. Did you mean '--quick'?"),
        (["bench", "--threads", "x"], "bench: --threads: expected a whole number; got 'x'"),
    ],
)  # fmt: skip
def test_wrong_words(words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("ensdistill: ")
    assert err.endswith((" shows the commands.\n", " explains the settings.\n", " explains the options.\n"))
    assert "usage:" not in err


def test_a_file_of_a_near_name_is_suggested(tmp_path):
    file = write_job(tmp_path)
    _, _, err = run("run", file.with_suffix(".yml"))
    assert f"there is no file {str(file.with_suffix('.yml'))!r}. Did you mean {str(file)!r}?" in err


def test_config_comes_first(tmp_path):
    file = write_job(tmp_path)
    status, _, err = run("run", "--seeds", "1", file)
    assert (status, f"run: CONFIG comes first: ensdistill run {file} --seeds 1" in err) == (2, True)
    status, _, err = run("run", tmp_path)
    assert (status, "DATA: expected a table" in err, f"{tmp_path} holds 1 .yaml" in err) == (2, True, True)


def test_version_and_info():
    from ensdistill import __version__
    from ensdistill.loss import ops

    assert succeed("--version") == f"ensdistill {__version__}\n"
    out = flat(succeed("info"))
    assert __version__ in out
    assert f"in use: {ops.instruction_set()}" in out
    assert "CUDA built" in out


def test_info_fits_a_terminal_of_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed("info").splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["ensdistill", "torch"]
    assert re.match(r" +built with [\w.+]+; the libraries serve [\d.]+ and later *$", lines[2])


def test_cache_info_and_verify(finished_job, tmp_path):
    folder = tmp_path / "targets"
    shutil.copytree(finished_job / "seed-0" / "cache" / "targets", folder)
    out = flat(succeed("cache", "info", folder))
    layout = json.loads((folder / "manifest.json").read_text())["record"]["bytes"]
    assert f"samples 260 records 260, of {layout} bytes each, in 1 shard files " in out
    assert re.search(r"files [\d.]+ kB in all", out)
    assert "uint8: KL to the exact targets mean" in out
    assert "mlp (0." in out
    assert "gaussiannb (0." in out
    assert (
        flat(succeed("cache", "verify", folder)) == f"✓ {folder}: 260 samples read, every byte is as written"
    )
    shard = folder / "shard-00000.safetensors"
    blob = bytearray(shard.read_bytes())
    blob[-1] ^= 128
    shard.write_bytes(blob)
    status, out, err = run("cache", "verify", folder)
    assert (status, out) == (1, "")
    assert f"{shard}: the bytes are not those that were written (hash)" in err
    status, _, err = run("cache", "info", tmp_path / "nowhere")
    assert (status, f"FOLDER: there is no folder '{tmp_path / 'nowhere'}'" in err) == (2, True)
    status, _, err = run("cache", "info", shard)
    assert (status, f"{shard}: expected a target cache's folder; got a file" in err) == (2, True)


def test_cache_alone_shows_its_commands():
    status, out, err = run("cache")
    assert (status, err) == (2, "")
    assert "verify FOLDER" in out
