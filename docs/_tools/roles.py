"""The docstrings' references, such as ``:class:`~ensdistill.cache.TargetCache```, as links of the site."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|obj):`(~?)([\w.]+)`")
# Lines without an indent are names and types in these sections. The site shows types as code, without markup.
TYPED = {"Parameters", "Other Parameters", "Returns", "Yields", "Attributes", "Raises", "Warns"}


def site_text(docstring: str) -> str:
    """A docstring as the site needs it: links in sentences, plain names in types, one colon before code."""
    lines, typed = docstring.splitlines(), False
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and re.fullmatch("-{3,}", lines[number + 1]):
            typed = line in TYPED
        if typed and line[:1].strip():
            lines[number] = ROLE.sub(_name, line).replace("``", "")
        else:
            lines[number] = re.sub(r"::$", ":", line)
    return ROLE.sub(_link, "\n".join(lines))


def _name(found: re.Match[str]) -> str:
    short, path = found[1] or "ensdistill." in found[2], found[2]
    return path.rsplit(".", 1)[-1] if short else path


def _link(found: re.Match[str]) -> str:
    return f'<autoref optional identifier="{found[2]}"><code>{_name(found)}</code></autoref>'


class Roles(Extension):
    """Rewrite each docstring once it is read. A name without a page of its own becomes plain code.

    Of a function with overloads, which help type checkers, the site shows the one signature that covers them.
    """

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = site_text(obj.docstring.value)

    def on_package(self, *, pkg: Object, **_: Any) -> None:
        parts = [pkg]
        while parts:
            part = parts.pop()
            if part.is_function:
                part.overloads = None
            parts += [member for member in part.members.values() if not member.is_alias]
