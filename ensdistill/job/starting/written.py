"""Settings as a short YAML file with comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

SHORT = 80  # characters of a class and its arguments that stand on one line
COMMENTS = {
    "teachers": "The ensemble. `ensdistill run --teachers.members.help` lists kinds of members. For a table "
    "`members: auto` makes a larger ensemble within a budget.",
    "cache": "Rows made from these, on which the student learns from the ensemble.",
    "distill": "The student. `ensdistill run --help` explains all settings, and has their defaults.",
    "max_test_copies": "Rows made from coarse columns may equal test rows; the report counts these.",
}
EXISTING = (
    "The members exist already. Where none of them learned from the labelled rows, add held_out: true "
    "to each: then temperatures and weights are fitted to these rows."
)


class _Short(yaml.SafeDumper):
    """A class with few arguments on one line, or else its arguments, as a person would write them."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        if "class_path" in mapping and len(str(mapping)) <= SHORT:
            node.flow_style = True
        elif "init_args" in mapping and len(str(mapping["init_args"])) <= SHORT:
            next(value for key, value in node.value if key.value == "init_args").flow_style = True
        return node


def written(settings: dict[str, Any], facts: Sequence[tuple[str, str]], head: Sequence[str]) -> str:
    """YAML in the order of the settings.

    Parameters
    ----------
    settings : dict
    facts : sequence of (str, str)
        Comments to the data.
    head : sequence of str
        Comments at the beginning.
    """
    comments = dict(COMMENTS)
    if any(member.get("class_path") in ("MemberFile", "SavedMembers", "SavedEnsemble")
           for member in settings.get("teachers", {}).get("members", ())):  # fmt: skip
        comments["teachers"] = EXISTING
    lines = [f"# {' '.join(line.split())}" for line in head]
    for name, value in settings.items():
        flow = (
            None if isinstance(value, (dict, list)) else False
        )  # a scalar's {name: value} is no line of YAML
        wide = "\n# ".join(textwrap.wrap(comments.get(name, ""), 108))
        if name == "data":
            lines += ["", *(f"# {word}: {' '.join(text.split())}" for word, text in facts)]
        elif name in comments:
            lines += ["", f"# {wide}"]
        lines.append(
            yaml.dump(
                {name: value},
                Dumper=_Short,
                sort_keys=False,
                default_flow_style=flow,
                width=96,
                allow_unicode=True,
            ).rstrip()
        )
    return "\n".join(lines) + "\n"
