"""The student's benchmark: what it measures, and that it refuses to time ways that end with other students."""

from functools import partial

import pytest
import torch

from benchmarks.student import command, contenders, measure
from benchmarks.student.models import Case, ResNet18, SmallTransformer
from ensdistill.models import MLP

TINY = Case("tiny MLP", partial(MLP, 6, [4], 3), (6,), 3, 2, 4, 64, 40)


def test_every_way_is_timed_and_compared(tmp_path):
    found = measure.measure(TINY, 1, tmp_path, lambda text: None)
    ways = [measure.BARE, measure.MEMORY, measure.EXACT, measure.CODES, measure.ONLINE]
    assert [*found["us_step"]] == ways
    assert all(step > 0 for step in found["us_step"].values())
    assert [found["differences"][way]["parameters"] for way in ways[:3]] == [0, 0, 0]
    assert found["differences"][measure.EXACT]["loss"] < 1e-9
    assert 0 < found["differences"][measure.CODES]["loss"] < measure.CLOSE
    assert not list(tmp_path.iterdir())


class Shifted(contenders.InMemory):
    """Targets of the next row."""

    def of(self, uids, epochs, samples):
        return super().of((uids + 1) % len(self.logits[0]), epochs, samples)


class Other(measure.OnlineTeachers):
    """Members that are twice as sure."""

    def __init__(self, ensemble):
        super().__init__(ensemble)
        ensemble.temperature /= 2


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("InMemory", Shifted, "targets in memory: expected the bits of the bare loop's student; its"),
        ("OnlineTeachers", Other, "online teachers: its mean loss is .* expected at most 1% between them"),
    ],
)
def test_another_student_is_refused(tmp_path, monkeypatch, name, wrong, message):
    monkeypatch.setattr(measure, name, wrong)
    with pytest.raises(measure.WrongStudent, match=f"^tiny MLP, {message}"):
        measure.measure(TINY, 1, tmp_path, lambda text: None)


def test_the_networks_are_those_of_their_names():
    convolutions = [m for m in ResNet18(64, 1000).modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == 18  # and the last layer
    # That of the ImageNet model, 11.69 million, less its 7 x 7 stem of 9408 and with a 3 x 3 one.
    count = sum(p.numel() for p in ResNet18(64, 1000).parameters())
    assert count == 11_689_512 - 9408 + 1728
    assert ResNet18(8, 5)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert SmallTransformer()(torch.zeros(2, 32, 16)).shape == (2, 10)


def test_a_name_of_no_student_is_an_error(tmp_path, capsys):
    assert command.main(["--only", "LSTM"], tmp_path) == 2
    assert "no student has 'LSTM' in its name" in capsys.readouterr().err


def test_a_scratch_folder_that_does_not_exist_is_made(tmp_path, monkeypatch):
    used, folder = [], tmp_path / "new" / "scratch"

    def refuse(case, rounds, scratch, note, online):
        used.append((scratch.parent, online))
        raise measure.WrongStudent("none")

    monkeypatch.setattr(measure, "measure", refuse)
    assert command.main(["--quick", "--only", "MLP", "--scratch", str(folder)], tmp_path) == 1
    assert command.main(["--quick", "--only", "MLP", "--without-online"], tmp_path) == 1
    assert (used[0], used[1][1]) == ((folder, True), False)
