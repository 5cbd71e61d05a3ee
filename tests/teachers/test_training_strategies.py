"""The ways of training: several at once on threads, the layout of images, and which way is chosen."""

import copy
import functools
import gc
import itertools
import math
import os
import random
import signal
import threading
import weakref
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.data import Digits
from ensdistill.data.augmentation import ShiftImages
from ensdistill.models import CNN, MLP
from ensdistill.teachers.stack import strategies, train_stack
from ensdistill.teachers.stack import train as stack
from ensdistill.teachers.stack.objectives import Objective
from ensdistill.teachers.stack.side_by_side import SideBySide
from ensdistill.teachers.stack.traits import traits

QUICK = Optimization(steps=80, batch_size=32, learning_rate=5e-3)
LONG = Optimization(steps=10**6, batch_size=8)  # too long to wait for its end
NET = functools.partial(CNN, channels=[4, 8], dropout=0.3)


@pytest.fixture(scope="module")
def digits():
    return Digits().split(seed=0).labelled


@pytest.fixture(autouse=True)
def two_threads():
    """However many cores there are; and every test leaves the number alone, for this thread and for those to
    come."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    now = torch.get_num_threads()
    torch.set_num_threads(before)
    assert (now, later) == (2, [2])
    assert not [t for t in threading.enumerate() if t.name.startswith("ensdistill")]


def train(digits, factory, seeds, **options):
    options.setdefault("optimization", QUICK)
    return train_stack(factory, digits.inputs, digits.labels, classes=10, seeds=seeds, **options)


def states(models):
    return [model.state_dict() for model in models]


def difference(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_a_model_has_the_same_bits_beside_any_others_and_with_any_number_of_threads(digits):
    rows = [np.arange(i, 200) for i in range(5)]
    options = {"augment": ShiftImages(), "way": "side_by_side"}
    among = states(train(digits, NET, list(range(5)), rows=rows, **options))
    (alone,) = states(train(digits, NET, [3], rows=[rows[3]], **options))
    assert difference(alone, among[3]) == 0
    torch.set_num_threads(1)
    in_turn = states(train(digits, NET, list(range(5)), rows=rows, **options))
    single = states(train(digits, NET, list(range(5)), rows=rows, augment=ShiftImages(), way="one_by_one"))
    torch.set_num_threads(2)
    assert all(difference(a, b) == 0 for a, b in zip(among, in_turn, strict=True))
    # The tolerance of test_training's stacks.
    assert max(difference(a, b) for a, b in zip(among, single, strict=True)) < 1e-4
    assert difference(among[2], single[3]) > 1e-2


class Counting(nn.Linear):
    """Knows on which threads it runs, and does something at a step of the model that is made as number
    ``at``."""

    made, seen, at, what = 0, [], -1, None

    def __init__(self):
        super().__init__(64, 10)
        self.number, self.steps = Counting.made, 0
        Counting.made += 1
        self.threads = set()

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.threads.add(threading.get_ident())
            self.steps += 1
            if self.number == Counting.at and self.steps == 40:
                Counting.what()
        return super().forward(x.flatten(1))


@pytest.fixture
def counting(monkeypatch):
    models = []

    def make(at=-1, what=None):
        monkeypatch.setattr(Counting, "made", 0)
        monkeypatch.setattr(Counting, "at", at)
        monkeypatch.setattr(Counting, "what", staticmethod(what) if what else None)

        def factory():
            models.append(Counting())
            assert threading.current_thread() is threading.main_thread()
            return models[-1]

        return factory

    make.models = models
    return make


def test_models_run_on_threads_and_callbacks_on_the_callers(digits, counting):
    seen, told, threads = [], [], set()

    def watch(status):
        threads.add(threading.get_ident())
        seen.append(status)

    def progress(done, total):
        threads.add(threading.get_ident())
        told.append((done, total))

    train(
        digits,
        counting(),
        [1, 2, 3, 4],
        way="side_by_side",
        watch=watch,
        progress=progress,
        names=list("abcd"),
    )
    assert threads == {threading.get_ident()}
    own = [model.threads for model in counting.models]
    assert all(len(t) == 1 and t != threads for t in own)
    assert len(set.union(*own)) == 2
    assert told == sorted(told)
    assert told[-1] == (320, 320)
    for name in "abcd":
        assert [s.step for s in seen if s.names == (name,)] == [32, 64, 80]


def test_an_error_ends_all_and_names_its_model(digits, counting):
    def broken():
        raise ArithmeticError("it broke")

    with pytest.raises(ArithmeticError, match="it broke") as caught:
        train(
            digits,
            counting(1, broken),
            [1, 2, 3, 4, 5],
            way="side_by_side",
            names=list("abcde"),
            optimization=LONG,
        )
    assert caught.value.__notes__ == ["in the training of b"]
    assert counting.models[4].steps == 0


@pytest.mark.parametrize("way", ["stacked", "one_by_one", "side_by_side"])
def test_an_error_names_its_model_in_every_way(digits, counting, way):
    def starved():
        torch.empty(2**50)

    def broken():
        raise ArithmeticError("it broke")

    torch.set_num_threads(2 if way == "side_by_side" else 1)
    options = {"way": way, "names": list("abc"), "optimization": LONG}
    # A stack runs the first one's code.
    at, who = {"stacked": (0, "a to c"), "one_by_one": (0, "a"), "side_by_side": (1, "b")}[way]
    factory = counting(at, broken)
    with pytest.raises(ArithmeticError) as caught:
        train(digits, factory, [1, 2, 3], **options)
    assert caught.value.__notes__ == [f"in the training of {who}"]
    advice = ", or train them by way='one_by_one'" if way == "stacked" else "$"
    with pytest.raises(
        MemoryError,
        match=rf"^{who}: out of memory in the training .*lower optimization\.batch_size \(8\){advice}",
    ):
        train(digits, counting(at, starved), [1, 2, 3], **options)
    torch.set_num_threads(2)


class Starved(MLP):
    """Finds no memory: at once, or not before it is trained."""

    learning = False

    def forward(self, x):
        if torch.is_grad_enabled() or not self.learning:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("way", get_args(strategies.Way))
@pytest.mark.filterwarnings("ignore:Starved can't be trained as a stack")
def test_short_memory_is_named_with_advice_in_every_way(digits, way, learning, monkeypatch):
    monkeypatch.setattr(Starved, "learning", learning)
    advice = (
        r"a: out of memory in the training \(CUDA out of memory\); lower optimization\.batch_size \(16\)$"
    )
    with pytest.raises(MemoryError, match=f"^{advice}"):
        train(
            digits,
            Starved,
            [1, 2, 3, 4],
            way=way,
            names=list("abcd"),
            optimization=Optimization(steps=200, batch_size=16),
        )


class Lonely(MLP):
    """Has memory for one copy of it, and of no other."""

    copied = None

    def __deepcopy__(self, memo):
        if type(self).copied not in (None, self):
            raise MemoryError("no copies")
        type(self).copied = self
        return copy.copy(self)


def test_short_memory_in_a_trial_rules_out_only_that_way(digits, monkeypatch):
    monkeypatch.setattr(Lonely, "copied", None)
    with pytest.warns(
        UserWarning, match=r"Lonely can't be trained (side by side|as a stack): no copies"
    ) as told:
        train(
            digits, Lonely, [1, 2, 3, 4], way="measured", optimization=Optimization(steps=200, batch_size=8)
        )
    assert len(told) == 2


@pytest.mark.parametrize("way", ["measured", "auto"])
def test_a_loss_that_explodes_while_the_ways_are_tried_has_its_own_name_alone(digits, way):
    numbers = itertools.count(1)

    def factory():
        model = MLP()
        if next(numbers) == 3:
            torch.nn.init.constant_(model[-1].weight, math.nan)
        return model

    with pytest.raises(FloatingPointError, match=r"^c: the loss is nan") as caught:
        train(
            digits,
            factory,
            [1, 2, 3, 4],
            way=way,
            names=list("abcd"),
            optimization=Optimization(steps=200, batch_size=16),
        )
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    "way", ["stacked", pytest.param("one_by_one", marks=pytest.mark.slow), "side_by_side"]
)
def test_the_memory_of_a_training_is_free_when_its_model_is_done(digits, monkeypatch, way):
    torch.set_num_threads(2 if way == "side_by_side" else 1)
    jobs, alive = weakref.WeakSet(), []
    make = stack.Job.__init__

    def noted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        jobs.add(self)

    monkeypatch.setattr(stack.Job, "__init__", noted)
    few = Optimization(steps=4, batch_size=8)

    def watch(status):
        gc.collect()
        alive.append(len(jobs))

    gc.collect()
    gc.freeze()  # a collection takes half a second where it looks at all that the tests have imported
    models = train(digits, MLP, range(8), way=way, watch=watch, optimization=few)
    gc.unfreeze()
    torch.set_num_threads(2)
    assert max(alive) <= {"stacked": 1, "one_by_one": 2, "side_by_side": 3}[way]
    assert all(p.grad is None for model in models for p in model.parameters())


def test_a_callback_that_raises_ends_all(digits, counting):
    def stop(status):
        if status.step >= 64:
            raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        train(digits, counting(), [1, 2, 3, 4], way="side_by_side", watch=stop, optimization=LONG)


def test_ctrl_c_ends_all(digits, counting):
    # A library that an earlier test used may have left a handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = functools.partial(os.kill, os.getpid(), signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(digits, counting(0, interrupt), [1, 2, 3, 4], way="side_by_side", optimization=LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert counting.models[0].steps >= 40


def test_ctrl_c_while_a_thread_is_being_started_leaves_their_number_alone(monkeypatch):
    """Such a thread is none that the pool knows, and goes on after all is over; ``two_threads`` checks the
    rest."""
    start, over, late = threading.Thread.start, threading.Event(), []

    def interrupted(self):
        run = self.run
        monkeypatch.setattr(self, "run", lambda: (over.wait(), run()))
        start(self)
        late.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SideBySide().run([lambda: None, lambda: None], 2)
    monkeypatch.setattr(threading.Thread, "start", start)
    over.set()
    (thread,) = late
    thread.join()


class Noisy(MLP):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x) if self.training else x)


class Shaken(MLP):
    draw = staticmethod(random.random)

    def forward(self, x):
        return super().forward(x * (1 + 0.1 * self.draw()) if self.training else x)


def test_a_model_that_cannot_run_at_once_is_trained_one_by_one_with_a_reason(digits):
    torch.set_num_threads(1)
    expected = states(train(digits, Noisy, [1, 2], way="one_by_one"))
    with pytest.warns(
        UserWarning, match="Noisy can't be trained side by side: it draws from a global generator"
    ):
        found = states(train(digits, Noisy, [1, 2], way="side_by_side"))
    assert difference(found[0], expected[0]) == difference(found[1], expected[1]) == 0
    kept = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    for draw in (random.random, np.random.rand):
        shaken = type("Shaken", (Shaken,), {"draw": staticmethod(draw)})()
        assert traits(shaken, torch.zeros(2, 64)).draws
    assert (random.getstate(), np.random.get_state()[2]) == kept  # noqa: NPY002
    assert not traits(MLP(), torch.zeros(2, 64)).draws
    activation = nn.ReLU()
    with pytest.warns(UserWarning, match="Sequential can't be trained side by side: its models share a ReLU"):
        train(
            digits,
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), activation),
            [1, 2],
            way="side_by_side",
        )
    once = Optimization(steps=1)
    with pytest.warns(UserWarning, match="it is compiled"):
        train(
            digits,
            lambda: nn.Sequential(torch.compile(MLP(), backend="eager")),
            [1, 2],
            way="side_by_side",
            optimization=once,
        )
    with pytest.raises(ValueError, match="way: side_by_side trains on the CPU's threads; got device 'meta'"):
        train(digits, MLP, [1, 2], way="side_by_side", device="meta")
    torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [([1.0, 3.0, 4.1], "one_by_one"), ([1.0, 1.4, 4.1], "side_by_side"), ([1.0, 1.4, 2.7], "stacked")],
)
def test_the_way_whose_steps_are_fastest_is_chosen_and_kept_by_a_resumed_training(
    digits, tmp_path, monkeypatch, seconds, chosen
):
    # Of one model one by one, of two at once (four take two rounds), of all four in a stack.
    left, long = list(seconds), Optimization(steps=220, batch_size=16)

    def measured(block, hopeless=None):
        block(1)
        return left.pop(0)

    monkeypatch.setattr(strategies, "step_seconds", measured)
    monkeypatch.setattr(strategies, "workers", lambda count: 2)
    torch.set_num_threads(1)  # as above

    def interrupt(done, total):
        raise InterruptedError

    kwargs = {"optimization": long, "way": "measured"}
    with pytest.raises(InterruptedError):
        train(digits, MLP, [1, 2, 3, 4], checkpoint=tmp_path, progress=interrupt, **kwargs)
    assert left == []
    resumed = states(train(digits, MLP, [1, 2, 3, 4], checkpoint=tmp_path, **kwargs))
    expected = states(train(digits, MLP, [1, 2, 3, 4], optimization=long, way=chosen))
    assert all(difference(a, b) == 0 for a, b in zip(resumed, expected, strict=True))
    left += seconds
    found = states(train(digits, MLP, [1, 2, 3, 4], **kwargs))
    torch.set_num_threads(2)
    assert left == []
    assert all(difference(a, b) == 0 for a, b in zip(found, expected, strict=True))


def test_a_way_that_fails_when_it_is_measured_is_not_chosen(digits):
    class Local(MLP):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                raise KeyError("not on this thread")
            return super().forward(x)

    with pytest.warns(UserWarning, match="Local can't be trained side by side: 'not on this thread'"):
        train(digits, Local, [1, 2], way="measured", optimization=Optimization(steps=200, batch_size=8))


class Slow(nn.Linear):
    """Takes its time where it is not vmapped."""

    def forward(self, x):
        import time

        time.sleep(0.03 if not torch._C._functorch.is_functorch_wrapped_tensor(x) else 0.0)
        return super().forward(x.flatten(1))


class Sleeping(nn.Linear):
    """Takes its time, and can't be stacked."""

    def forward(self, x):
        import time

        time.sleep(0.03 if x.sum().item() < 1e9 else 0.0)
        return super().forward(x.flatten(1))


@pytest.mark.parametrize(("kind", "expected"), [(Slow, "stacked"), (Sleeping, "side_by_side")])
@pytest.mark.filterwarnings("ignore:Sleeping can't be trained as a stack")
def test_models_that_are_slow_one_by_one_are_trained_at_once(digits, monkeypatch, kind, expected):
    monkeypatch.setattr(strategies, "workers", lambda count: 2)
    torch.set_num_threads(1)
    data = [torch.from_numpy(v) for v in (digits.inputs, digits.labels)]
    models = [kind(64, 10) for _ in range(6)]

    def job(group):
        count = len(group)
        return stack.Job(
            [kind(64, 10) for _ in group],
            ["m"] * count,
            list(group),
            [np.arange(200)] * count,
            *data,
            Objective("classification", 10),
            QUICK,
            None,
            [],
        )

    found = strategies.fastest(models, job)
    torch.set_num_threads(2)
    assert found == expected
