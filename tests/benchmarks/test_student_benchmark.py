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
    assert [found["differences"][way] for way in ways[:3]] == [0, 0, 0]
    assert 0 < found["differences"][measure.CODES] < measure.CLOSE
    assert not list(tmp_path.iterdir())


def test_another_student_is_refused(tmp_path, monkeypatch):
    class Shifted(contenders.InMemory):
        def of(self, uids, epochs, samples):
            return super().of((uids + 1) % len(self.logits[0]), epochs, samples)

    monkeypatch.setattr(measure, "InMemory", Shifted)
    with pytest.raises(
        measure.WrongStudent, match=r"^tiny MLP, targets in memory: its student is .* at most 0$"
    ):
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
