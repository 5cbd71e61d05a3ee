"""Processes that help the searches of a job."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from functools import partial
from types import SimpleNamespace

import pytest
from blocked_helper import Search, start, wait_for

from ensdistill.job.helpers import Helpers
from ensdistill.job.unit import Unit

SEARCHES = [Unit("search", seed, "small") for seed in range(2)]


class Process:
    """In place of a process."""

    def __init__(self, target, args, daemon):
        self.unit, self.alive = args[-1], False

    def start(self):
        self.alive = True

    def is_alive(self):
        return self.alive

    def terminate(self):
        self.alive = False


@pytest.fixture
def helpers():
    return Helpers(SimpleNamespace(Process=Process, Pipe=mp.Pipe), None, 3)


def units(helpers):
    return [one.unit for started in helpers.started.values() for one in started if one.alive]


def test_free_workers_help_the_searches_in_turn(helpers):
    timed = SimpleNamespace(trials=None)
    helpers.help([*SEARCHES, Unit("direct", 0, "other")], 0, timed)
    assert not units(helpers)
    helpers.help([Unit("distill", 0, "other")], 2, timed)
    assert not units(helpers)
    helpers.help(SEARCHES, 3, timed)
    assert sorted(map(str, units(helpers))) == sorted(map(str, [SEARCHES[0], *SEARCHES]))
    helpers.help(SEARCHES, 3, timed)
    assert len(units(helpers)) == 3
    helpers.end(SEARCHES[0])
    assert units(helpers) == [SEARCHES[1]]


def test_a_killed_helper_is_not_started_again_and_again(helpers):
    timed = SimpleNamespace(trials=None)
    for _ in range(5):
        helpers.help(SEARCHES[:1], 2, timed)
        for one in helpers.started[SEARCHES[0]]:
            one.alive = False
    assert len(helpers.started[SEARCHES[0]]) == 2


def test_a_search_by_trials_has_no_help_because_it_would_be_another(helpers):
    helpers.help(SEARCHES, 3, SimpleNamespace(trials=5))
    assert not helpers.started


def test_a_helper_that_is_killed_inside_put_blocks_no_other(tmp_path):
    helpers = Helpers(mp.get_context("spawn"), partial(start, tmp_path), 3)
    helpers.help([Search("search")], 2, SimpleNamespace(trials=None))
    (both,) = helpers.started.values()
    wait_for(tmp_path / "first")
    time.sleep(0.2)  # until its pipe is full
    first = int(os.readlink(tmp_path / "first"))
    os.kill(first, signal.SIGKILL)
    next(one for one in both if one.pid == first).join()
    (tmp_path / "killed").touch()
    found, until = [], time.monotonic() + 60
    while any(one.is_alive() for one in both):
        assert time.monotonic() < until
        found += helpers.messages()
        time.sleep(0.01)
    assert [*found, *helpers.messages()] == ["from the other"]
    assert not helpers._pipes
