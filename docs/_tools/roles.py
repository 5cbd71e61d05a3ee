"""The docstrings' references, such as ``:class:`~ensdistill.cache.TargetCache```, as links of the site."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|obj):`(~?)([\w.]+)`")


def _link(found: re.Match[str]) -> str:
    short, path = found[1] or "ensdistill." in found[2], found[2]
    name = path.rsplit(".", 1)[-1] if short else path
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


class Roles(Extension):
    """Rewrite each docstring once it is read. A name without a page of its own becomes plain code."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = ROLE.sub(_link, obj.docstring.value)
