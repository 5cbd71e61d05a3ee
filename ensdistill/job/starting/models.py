"""A look at a folder of models: files of other libraries, saved members, saved ensembles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensdistill.job.starting.found import listed

CERTAIN = (".skops", ".ubj", ".cbm", ".onnx")  # endings that only models have
PERHAPS = (".json", ".txt")  # boosters have them, and data too
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".dill")
STATES = ".safetensors"
_NAMES = {".skops": "an estimator", ".onnx": "an ONNX file"}


def look_at_models(path: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]] | None:
    """The members in a folder, as settings, and facts about them; None where it holds no models.

    Raises
    ------
    ValueError
        It holds models, but none that can be read as it is.
    """
    members = list(_members(path))
    files = sorted(file for file in path.iterdir() if file.is_file())
    pickles = [file.name for file in files if file.suffix in PICKLES]
    states = [file.name for file in files if file.suffix == STATES]
    if not members and not pickles:
        return None
    facts = [("members", listed([text for _, text in members]))]
    if pickles:
        remedy = "save them by skops.io.dump, safetensors.torch.save_file or save_model"
        facts.append(("left out", f"{listed(pickles)}: reading pickles can run code; {remedy}"))
    if states:
        facts.append(("left out", f"{listed(states)}: name the module's class, as MemberFile's model"))
    if not members:
        reasons = "; ".join(text for _, text in facts[1:])
        raise ValueError(f"path: {path} holds no model that is read as it is; {reasons}")
    return [settings for settings, _ in members], facts


def no_models(path: Path) -> str:
    """The files of a folder that look like models and can't be members as they are, with the remedy; or
    "none"."""
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    pretrained = [folder.resolve().name for folder in folders if (folder / "config.json").is_file()]
    if pretrained:
        return (
            f"models of Hugging Face ({listed(pretrained)}), which are built in Python: "
            "Ensemble.from_members([(model, Tokens(tokenizer_file)), ...]).save(FOLDER) writes a folder for "
            "this command"
        )
    if states := sorted(file.name for file in path.glob(f"*{STATES}")):
        return (
            f"weights alone ({listed(states)}): name their module's class by import path, as the model of a "
            "MemberFile in a YAML file's teachers.members"
        )
    return "none"


def _members(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Settings of each, and its name."""
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    ensembles = [folder for folder in folders if (folder / "ensemble.json").is_file()]
    for folder in ensembles:
        # Two saved ensembles may have members of the same names.
        prefix = {"prefix": f"{folder.resolve().name}-"} if len(ensembles) > 1 else {}
        yield (
            _recipe("SavedEnsemble", folder=str(folder), **prefix),
            f"{folder.resolve().name} (a saved ensemble)",
        )
    if any((folder / "member.json").is_file() for folder in folders):
        yield _recipe("SavedMembers", folder=str(path)), f"{path.resolve().name} (saved members)"
    for file in sorted(path.iterdir()):
        if file.is_file() and (file.suffix in CERTAIN or (file.suffix in PERHAPS and _is_booster(file))):
            yield (
                _recipe("MemberFile", file=str(file)),
                f"{file.name} ({_NAMES.get(file.suffix, 'a booster')})",
            )


def _recipe(cls: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": cls, "init_args": arguments}


def _is_booster(file: Path) -> bool:
    """Whether a .txt file is LightGBM's, or a .json file XGBoost's or CatBoost's."""
    with file.open("rb") as opened:
        if file.suffix == ".txt":
            return opened.readline().strip() == b"tree"
    try:
        keys = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(keys, dict) and bool({"learner", "oblivious_trees", "trees"} & keys.keys())
