"""The name of a codec outside the package: its class path, with its settings as keyword arguments.

``my_package.my_codec.Nibbles(shift=True)`` is one line of text, so that it can stand in a manifest, in a YAML
file and on a command line. It is parsed, never evaluated.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

PACKAGE = "ensdistill.cache.codecs."
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_LONGEST = 500  # a manifest may come from anywhere, and the parser's work grows with the text


def class_path(cls: type) -> str:
    """The import path of a class.

    >>> from collections import OrderedDict
    >>> class_path(OrderedDict)
    'collections.OrderedDict'
    """
    return f"{cls.__module__}.{cls.__qualname__}"


def written_name(cls: type, settings: dict[str, Any]) -> str:
    """The name of a codec of this class with these settings.

    Raises
    ------
    TypeError
        A setting is no plain number, string, boolean or None, or the name has more than 500 characters.

    Examples
    --------
    >>> from fractions import Fraction
    >>> written_name(Fraction, {"numerator": 3})
    'fractions.Fraction(numerator=3)'
    """
    for key, value in settings.items():
        if not _plain(value):
            raise TypeError(
                "codec: expected settings that are finite numbers, strings, booleans or None; "
                f"{class_path(cls)} has {key}={value!r}"
            )
    arguments = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    name = f"{class_path(cls)}({arguments})" if settings else class_path(cls)
    if len(name) > _LONGEST:
        raise TypeError(
            f"codec: expected a name of at most {_LONGEST} characters; got {len(name)}: {name[:80]}..."
        )
    return name


def parsed_name(name: Any) -> tuple[str, dict[str, Any]] | None:
    """The class path and the settings of such a name; None where the text is none.

    Examples
    --------
    >>> parsed_name("my_package.my_codec.Nibbles(shift=True, bits=4)")
    ('my_package.my_codec.Nibbles', {'shift': True, 'bits': 4})
    >>> parsed_name("uint8"), parsed_name("os.system('ls')"), parsed_name("a.B(x=__import__('os'))")
    (None, None, None)
    """
    if not isinstance(name, str) or len(name) > _LONGEST:
        return None
    path, parenthesis, _ = name.partition("(")
    if not _PATH.fullmatch(path):
        return None
    if not parenthesis:
        return path, {}
    try:
        call: Any = ast.parse(name, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        if ast.unparse(call.func) != path:
            return None
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return (path, settings) if all(map(_plain, settings.values())) else None


def _plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
