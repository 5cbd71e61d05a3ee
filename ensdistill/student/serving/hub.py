"""Students on the Hugging Face Hub, through huggingface_hub's own mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, constants, snapshot_download

from ensdistill.common.files import write_json
from ensdistill.student.serving.card import short_card
from ensdistill.student.serving.student import FILE, Student


class HubStudent(ModelHubMixin):
    """A student with the Hub's three methods; :class:`Student` has them as its own."""

    def __init__(self, student: Student) -> None:
        self.student = student

    def _save_pretrained(self, save_directory: Path) -> None:
        self.student.save(save_directory)
        # The Hub counts the downloads of this file. The description of the student is student.json.
        about = {"library_name": "ensdistill", "task": self.student.task, "description": FILE}
        write_json(save_directory / constants.CONFIG_NAME, about)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, trusted: Any = (), **download: Any) -> HubStudent:
        place = Path(model_id)
        if not place.is_dir():
            place = Path(snapshot_download(model_id, library_name="ensdistill", **download))
        return cls(Student.load(place, trusted))

    def generate_model_card(self, name: str = "", **_: Any) -> ModelCard:
        return ModelCard(short_card(self.student, name))
