"""``ensdistill completion SHELL``: a script that completes this program's words."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ensdistill.cli.manner import OPTIONS
from ensdistill.cli.messages import usage_error
from ensdistill.cli.usage import CACHE_COMMANDS, COMMANDS

SHELLS = ("bash", "zsh", "fish")
_JOB = (
    "--target",
    "--ignore",
    "--data",
    "--task",
    "--separator",
    "--keep",
    "--max_latency",
    "--max_bytes",
    "--max_parameters",
    "--config",
    "--print_config",
    "--name",
    "--folder",
    "--seeds",
    "--workers",
    "--threads",
    "--minutes",
)
_PARSED = ("init", "predict", "export", "compare")  # modules of these names have parser()
# The options of other commands, beside those that all commands take.
_OPTIONS_OF = {
    **dict.fromkeys(("run", "teachers", "cache build", "tune", "distill", "report"), _JOB),
    "bench": ("--quick", "--device", "--threads", "--out", "--resume"),  # its module needs torch
}
WORDS_OF = {"completion": SHELLS, "cache": CACHE_COMMANDS}
USAGE = """\
usage: ensdistill completion bash|zsh|fish

Prints a script that completes commands, options and files. Once:
  bash   ensdistill completion bash >> ~/.bash_completion
  zsh    ensdistill completion zsh >> ~/.zshrc
  fish   ensdistill completion fish > ~/.config/fish/completions/ensdistill.fish
"""
_BASH = """\
_ensdistill() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words="" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local command="${{COMP_WORDS[1]}}"
  [ "$command" = cache ] && [ "$COMP_CWORD" -gt 2 ] && command="cache ${{COMP_WORDS[2]}}"
  [ "$word" = = ] && word=""  # bash divides --to=onnx into three words
  [ "$before" = = ] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
  case "$command $before" in
{values}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} --help --version"
  else
    case "$command" in
{cases}
    esac
    words="$words --help {options}"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # Without a dash it may be a file; files come from the shell itself.
  [ "${{word#-}}" = "$word" ] && COMPREPLY+=($(compgen -f -- "$word"))
  return 0
}}
complete -o filenames -F _ensdistill ensdistill
"""


def main(words: Sequence[str]) -> int:
    """Print the script of a shell; return the exit status."""
    if "-h" in words or "--help" in words:
        print(USAGE, end="")
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        return usage_error(
            f"completion: expected a shell, {', '.join(SHELLS)}; got {' '.join(words) or 'nothing'}", more=""
        )
    print(script(words[0]), end="")
    return 0


def script(shell: str) -> str:
    """The script, made from the table of commands."""
    if shell == "fish":
        return _fish()
    both = {**WORDS_OF, **options_of()}
    bash = _BASH.format(
        commands=" ".join(COMMANDS),
        cases="\n".join(f'      "{name}") words="{" ".join(words)}" ;;' for name, words in both.items()),
        values="\n".join(
            f'    "{" ".join(asked)}") COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$word")); return 0 ;;'
            for asked, values in values_of().items()
        ),
        options=" ".join(OPTIONS),
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def options_of() -> dict[str, tuple[str, ...]]:
    """The options of each command, beside those that all commands take."""
    found = {
        name: tuple(
            o for o in p._option_string_actions if o.startswith("--") and o not in ("--help", *OPTIONS)
        )
        for name, p in _parsers().items()
    }
    return _OPTIONS_OF | found


def values_of() -> dict[tuple[str, str], tuple[str, ...]]:
    """The values of each (command, option) that has a few."""
    return {
        (name, option): tuple(map(str, action.choices))
        for name, parser in _parsers().items()
        for option, action in parser._option_string_actions.items()
        if action.choices
    }


def _parsers() -> dict[str, Any]:
    return {name: import_module(f"ensdistill.cli.{name}").parser() for name in _PARSED}


def _fish() -> str:
    lines = [f"complete -c ensdistill -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'"]
    lines += [f"complete -c ensdistill -l {option.removeprefix('--')}" for option in OPTIONS]
    for command, options in options_of().items():
        seen = " ".join(f"; and __fish_seen_subcommand_from {word}" for word in command.split())
        condition = f"'{seen.removeprefix('; and ')}'"
        for option in options:
            values = values_of().get((command, option))
            choices = f" -x -a '{' '.join(values)}'" if values else ""
            lines.append(f"complete -c ensdistill -n {condition} -l {option.removeprefix('--')}{choices}")
    for command, words in WORDS_OF.items():
        condition = f"'__fish_seen_subcommand_from {command}'"
        lines.append(f"complete -c ensdistill -n {condition} -a '{' '.join(words)}'")
    return "\n".join(lines) + "\n"
