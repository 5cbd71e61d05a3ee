"""The live view: the lines on a terminal while a job runs, and after."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from ensdistill.cli.display import Display

LONG = "direct label smoothing of a student with a long name, and then some more"


def shown(width: int, terminal: bool = True) -> list[str]:
    """Every line that was ever on the screen, without its colours."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        _environ={"TERM": "xterm"},
    )
    with Display(console) as display:
        display.start(1, 2)
        for _ in range(2):
            display.warning("[a] warning\nof two lines")
        display.progress("seed 0", LONG, 0, 40)
        for done in (10, 40):
            display.progress("seed 0", LONG, done, 40)
            display._bars.refresh()
        display.finished("seed 0", 12.34)
        display.finished("seed 1", 1.0)
        display._bars.refresh()
        display.finished("report", 7.0)
        display._bars.refresh()
    assert display.done == 3
    return [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip() for line in stream.getvalue().splitlines()
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_numbers_are_whole_and_the_description_gives_way(width):
    lines = [line for line in shown(width) if "%" in line]
    assert max(map(len, lines)) <= width
    # A bar that shows something, the share, the rate or the count, and the time left (the elapsed one too
    # where there is room).
    times = " ".join([r"(\d+|-):(\d\d|--):(\d\d|--)"] * (1 if width < 100 else 2))
    number = r"(\d/3|[\d,.]+k?/s| *)"
    assert all(re.search(rf" [━╸╺]{{12,24}} +\d+ % +{number} +{times}$", line) for line in lines), lines
    assert any("…" in line for line in lines)
    assert not any("4/3" in line for line in lines)


def test_losses_and_scores_stand_behind_the_description_and_leave_the_time_alone():
    stream = io.StringIO()
    console = Console(file=stream, width=140, force_terminal=True, _environ={"TERM": "xterm"})
    with Display(console) as display:
        display.progress("seed 0", "student", 10, 40, "loss 0.5")
        begun = display._bars.tasks[0].start_time
        display.progress("seed 0", "student", 20, 40, "loss 0.25 · kl 0.125")
        display._bars.refresh()
        assert display._bars.tasks[0].start_time == begun
        display.progress("seed 0", "the next", 0, 40)
        display._bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", stream.getvalue())
    assert "seed 0 · student · loss 0.25 · kl 0.125 " in text
    assert re.search(r"seed 0 · the next +[━╸╺]", text)


def test_the_lines_that_stay():
    lines = shown(80, terminal=False)
    assert lines == [
        "1 finished piece kept, 2 to do.",
        "ensdistill: warning: [a] warning of two lines",
        "✓ seed 0 (12.3 s)",
        "✓ seed 1 (1.0 s)",
        "✓ report (7.0 s)",
    ]


def test_a_log_begins_with_the_number_of_pieces():
    stream = io.StringIO()
    with Display(Console(file=stream, width=80, force_terminal=False)) as display:
        display.start(0, 3)
    assert stream.getvalue() == "3 pieces of work to do.\n"


KILLED = """
import multiprocessing, os, signal
from ensdistill.job.scheduler import _start_tracker
if {quiet}:
    _start_tracker()
semaphore = multiprocessing.get_context("spawn").Semaphore()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="semaphores have names elsewhere too, but other ones"
)
@pytest.mark.parametrize("quiet", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_run_leaves_no_warning(quiet):
    # The tracker is a process of its own and holds standard error open until it has cleaned up.
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(quiet=quiet)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9
    assert ("leaked" in done.stderr) is not quiet
