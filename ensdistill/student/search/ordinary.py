"""The steps of an ordinary training: by the number of rows, but few enough that several trainings fit into
the minutes."""

from __future__ import annotations

import time
from functools import partial

from ensdistill.student.search.clock import Clock
from ensdistill.student.search.journal import Journal
from ensdistill.student.search.ladders import Ladders
from ensdistill.student.search.rows import Lessons
from ensdistill.student.search.settings import SearchSettings
from ensdistill.student.search.space import ROLES, Role, ordinary_steps
from ensdistill.student.search.trial import Work

SHORT, LONG = 64, 320  # steps of the trainings that are timed
LEAST_STEPS = 256  # of a training


def steps_of_roles(
    lessons: Lessons, settings: SearchSettings, ladders: Ladders, journal: Journal, clock: Clock, seed: int
) -> dict[Role, int]:
    """Steps of an ordinary training of each role. A search that goes on keeps them."""
    wanted: dict[Role, int] = {role: settings.steps or ordinary_steps(lessons.about, role) for role in ROLES}
    if clock.timed and settings.steps is None:
        measure = partial(_timed, lessons, ladders, seed)
        begin, step = journal.setting("seconds of a training's begin and of a step", measure)
        for role in ROLES:
            most = 32 * round((clock.seconds_of_each(role) - begin) / max(step, 1e-6) / 32)
            wanted[role] = max(LEAST_STEPS, min(wanted[role], most))
    found: dict[Role, int] = journal.setting("steps", lambda: wanted)
    return found


def _timed(lessons: Lessons, ladders: Ladders, seed: int) -> tuple[float, float]:
    """Seconds of a training's begin and of a step, of the middle network by the student's defaults; those of
    *direct*, whose batches are smaller, take no longer."""
    networks = [key for keys in ladders.keys.values() for key in keys if ladders.built[key].model]
    if not networks:
        return 0.0, 0.0
    built = ladders.built[networks[len(networks) // 2]]

    def seconds(steps: int) -> float:
        space, begun = lessons.space(built.candidate, "student", steps), time.perf_counter()
        Work(lessons, built, space, space.defaults(), seed).run(lambda value, place: "")
        return time.perf_counter() - begun

    seconds(SHORT)  # the first training loads code
    begin, whole = seconds(SHORT), seconds(LONG)
    return begin, (whole - begin) / (LONG - SHORT)
