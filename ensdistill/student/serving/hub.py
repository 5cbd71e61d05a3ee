"""Students on the Hugging Face Hub, through huggingface_hub's own mixin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, constants, snapshot_download

from ensdistill.common.files import write_json
from ensdistill.student.serving.card import short_card


class OnHub(ModelHubMixin):
    """A student with the Hub's three methods; :class:`ensdistill.Student` has them as its own."""

    def __init__(self, student: Any) -> None:
        self.student = student

    def _save_pretrained(self, save_directory: Path) -> None:
        self.student.save(save_directory)
        # The Hub counts the downloads of this file. The description of the student is student.json.
        about = {"library_name": "ensdistill", "task": self.student.task}
        write_json(save_directory / constants.CONFIG_NAME, about)

    @classmethod
    def _from_pretrained(  # type: ignore[override] # the mixin hands on what from_pretrained was given
        cls, *, model_id: str, load: Callable[[Path], Any], **download: Any
    ) -> OnHub:
        place = Path(model_id)
        if not place.is_dir():
            place = Path(snapshot_download(model_id, library_name="ensdistill", **download))
        return cls(load(place))

    def generate_model_card(self, name: str = "", **_: Any) -> ModelCard:
        return ModelCard(short_card(self.student, name))
