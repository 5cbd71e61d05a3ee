"""The completion scripts, by the shells themselves where they are there."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from job_helpers import run, succeed

from ensdistill.cli.completion import options_of
from ensdistill.cli.usage import CACHE_COMMANDS, COMMANDS


def completed(folder, *words: str) -> list[str]:
    """The words that bash offers for the last of these."""
    (folder / "script").write_text(succeed("completion", "bash"))
    program = f"""
    source ./script
    COMP_WORDS=(ensdistill {" ".join(f"'{word}'" for word in words)})
    COMP_CWORD={len(words)}
    _ensdistill
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["com"], ["compare", "completion"]),
        (["--v"], ["--version"]),
        (["cache", "pu"], ["push", "pull"]),
        (["run", "dig"], ["digits.csv"]),
        (["run", "digits.csv", "--tar"], ["--target"]),
        (["cache", "build", "--see"], ["--seeds"]),
        (["completion", "z"], ["zsh"]),
        (["compare", "--js"], ["--json"]),
        (["init", "--fo"], ["--force"]),
        (["export", "runs/a", "--to", ""], ["onnx", "torch", "safetensors"]),
        (["export", "runs/a", "--to", "s"], ["safetensors"]),
        (["export", "--to", "=", "on"], ["onnx"]),
        (["predict", "runs/a", "new.csv", "--on-error", ""], ["raise", "skip"]),
    ],
)
def test_bash_completes(words, expected, tmp_path):
    (tmp_path / "digits.csv").touch()
    assert completed(tmp_path, *words) == expected


def test_all_commands_are_offered(tmp_path):
    assert set(completed(tmp_path, "")) >= set(COMMANDS)
    assert set(completed(tmp_path, "cache", "")) >= set(CACHE_COMMANDS)
    assert {name.split()[0] for name in options_of()} <= set(COMMANDS)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(shell, tmp_path):
    script = succeed("completion", shell)
    assert "onnx torch safetensors" in script
    assert all(command in script for command in COMMANDS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_an_unknown_shell_is_refused():
    status, out, err = run("completion", "tcsh")
    assert (status, out) == (2, "")
    assert "completion: expected a shell, bash, zsh, fish; got tcsh" in err
