"""The packages that loading a saved member needs, and an error that names a missing one."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from io import BytesIO
from pathlib import Path
from typing import Any

from ensdistill.common.describe import paths_of

METADATA = (".dist-info", ".egg-info", ".egg-link")
# Always there with ensdistill, or with one of the others.
_GIVEN = {"ensdistill", "numpy", "scipy", "builtins", "__main__"}


def needed(modules: Iterable[str]) -> dict[str, str]:
    """Requirements, such as ``scikit-learn==1.9.0``, by the packages' import names.

    Parameters
    ----------
    modules : iterable of str
        Modules or class paths. Python's own ones and this package's are left out.

    Examples
    --------
    >>> list(needed(["torch.nn", "sklearn.svm.SVC", "json", "ensdistill.models.MLP"]))
    ['sklearn', 'torch']
    """
    roots = {module.partition(".")[0] for module in modules}
    names = sorted(roots - _GIVEN - {*sys.stdlib_module_names})
    known = _distributions(_installed()) if names else {}
    return {name: _requirement(name, known.get(name, [name])[0]) for name in names}


def _installed() -> tuple[str, ...]:
    """The packages' folders of metadata."""
    folders = [folder for name in sys.path if (folder := Path(name or ".")).is_dir()]
    return tuple(str(one) for folder in folders for one in folder.iterdir() if one.suffix in METADATA)


@lru_cache(maxsize=1)
def _distributions(installed: tuple[str, ...]) -> Mapping[str, list[str]]:
    # It reads the list of files of every package, which takes as long as many a model's whole training.
    return packages_distributions()


def of_archive(blob: bytes) -> list[str]:
    """The modules of the types in a .skops archive, and skops itself."""

    def modules(node: Any) -> list[str]:
        if isinstance(node, list):
            return [name for part in node for name in modules(part)]
        if not isinstance(node, dict):
            return []
        own = [node["__module__"]] if isinstance(node.get("__module__"), str) else []
        return own + [name for part in node.values() for name in modules(part)]

    with zipfile.ZipFile(BytesIO(blob)) as archive:
        return ["skops", *modules(json.loads(archive.read("schema.json")))]


def of_preprocess(preprocess: Any) -> list[str]:
    """The modules that loading a preprocess needs."""
    found = [type(preprocess).__module__]
    if hasattr(preprocess, "transformer"):
        import skops.io

        found += of_archive(skops.io.dumps(preprocess.transformer))
        found += ["pandas"] if getattr(preprocess, "pandas", False) else []
    if hasattr(preprocess, "tokenizer"):
        found.append("tokenizers")
    return found + list(of_recipe(getattr(preprocess, "recipe", None)))


def of_recipe(recipe: Mapping[str, Any] | None) -> list[str]:
    """The modules of a torch module's classes."""
    return [] if recipe is None else ["torch", *paths_of(recipe)]


def check_needs(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ImportError where a package is not installed that the saved files need; names all of them."""
    needs = about.get("needs")
    missing = [
        str(requirement)
        for name, requirement in (needs.items() if isinstance(needs, dict) else ())
        if not _is_there(str(name))
    ]
    if missing:
        packages = [requirement for requirement in missing if "==" in requirement]
        remedy = f": pip install {' '.join(packages)}" if packages else ""
        raise ImportError(f"{folder}: needs {', '.join(missing)}, not installed here{remedy}")


def _is_there(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _requirement(name: str, distribution: str) -> str:
    try:
        return f"{distribution}=={version(distribution).partition('+')[0]}"
    except PackageNotFoundError:  # a module beside the program
        return f"the module {name}"
