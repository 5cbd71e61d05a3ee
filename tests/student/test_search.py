"""The search for a student: its choice, its budget, its journal."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from search_helpers import Boosters, Material, Tiny

from ensdistill.data import UNLABELLED, Rows
from ensdistill.loss.settings import LossSettings
from ensdistill.models import MLP
from ensdistill.student.quality import Quality, of_rows
from ensdistill.student.search import OtherSearch
from ensdistill.student.search.build import Builder
from ensdistill.student.search.choosing import _notes
from ensdistill.student.search.figures import ensemble_figures, figures_of
from ensdistill.student.search.journal import JOURNAL, Journal
from ensdistill.student.search.judging import Kept, _share, kept
from ensdistill.student.search.latency import Latency
from ensdistill.student.search.result import least
from ensdistill.student.search.rows import LEAST, Judged, lessons
from ensdistill.student.search.section import section_of
from ensdistill.student.search.trial import Work
from ensdistill.teachers.fitting.scaling import Scaling

pytest.importorskip("optuna")


@pytest.fixture(scope="module", autouse=True)
def no_export():
    """Making a graph of each candidate takes seconds."""
    with mock.patch("ensdistill.student.search.ladders.latency_of", return_value=Latency(2e-5, "none")):
        yield


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("search") / "cache")


@pytest.fixture(scope="module")
def found(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    return material.search(keep=0.5, folder=folder), folder


def test_the_smallest_student_that_keeps_enough_is_chosen(found):
    result, _ = found
    enough = [p for p in result.points if p.share is not None and p.share >= 0.5]
    assert result.chosen == min(enough, key=lambda p: p.bytes)
    assert [p.bytes for p in result.points] == sorted(p.bytes for p in result.points)
    assert "is the smallest that keeps 50 %" in str(result)


def test_a_student_worse_than_direct_on_labels_is_not_chosen_however_like_the_ensemble_it_is(found):
    from ensdistill.student.search.choosing import _keeps

    result, _ = found
    like = {metric: Kept(0.99, 0.98, 1.0, "ensemble") for metric in ("nll", "accuracy")}
    one = replace(result.chosen, kept=like, figures={**result.chosen.figures, "nll": 0.5})
    records = [mock.Mock(losses={"nll": nll}) for nll in (0.51, 0.49)]
    assert [_keeps(one, direct, 0.95) for direct in records] == [True, False]
    assert _keeps(one, mock.Mock(losses={"kl": 0.1}), 0.95)  # no row has a label


def test_the_frontier_is_drawn_and_saved(found, tmp_path):
    axes = found[0].figure().axes[0]
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == {p.candidate for p in found[0].points if p.frontier}
    found[0].save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["chosen"] == found[0].chosen.candidate


def test_direct_has_as_many_trials_as_the_student(found):
    result, _ = found
    assert result.cost.trials == {"direct": 3, "student": 3}
    assert set(result.direct.figures) >= {"nll", "accuracy", "kl", "agreement"}


def test_the_cost_counts_the_rows_that_the_ensemble_predicted(found, material):
    assert found[0].cost.teacher_rows == len(material.rows) + len(material.validation)


@pytest.mark.slow
def test_the_same_search_finds_the_same(found, material, tmp_path):
    again = material.search(keep=0.5, folder=tmp_path)
    for one, other in zip(again.points, found[0].points, strict=True):
        assert (one.candidate, one.figures, one.values) == (other.candidate, other.figures, other.values)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(2, 0), (5, 2)])
def test_a_search_that_was_killed_in_a_trial_finds_the_same(found, material, tmp_path, killed):
    trainings, evaluations, run = itertools.count(1), itertools.count(), Work.run

    def killing(self, report):
        this = next(trainings)

        def reporting(value, evaluation):
            said = report(value, evaluation)
            if this == killed[0] and next(evaluations) == killed[1]:
                raise KeyboardInterrupt
            return said

        return run(self, reporting)

    with mock.patch.object(Work, "run", killing), pytest.raises(KeyboardInterrupt):
        material.search(keep=0.5, folder=tmp_path)
    again, whole = material.search(keep=0.5, folder=tmp_path), found[0]
    assert again.cost.trials == whole.cost.trials
    assert again.cost.ended == whole.cost.ended
    for one, other in zip([*again.points, again.direct], [*whole.points, whole.direct], strict=True):
        assert (one.candidate, one.figures, one.values) == (other.candidate, other.figures, other.values)


def test_the_trial_of_a_killed_process_is_begun_again(material, tmp_path):
    known = lessons(
        {"given": (material.rows, material.cache)}, material.validation, material.probabilities, None, 0
    )
    space = known.space(Tiny().candidates(known.about)[0], "student", 96)

    def begun(folder, *givens, close=True):
        journal = Journal(folder, {}, 0)
        journal.start()
        found = [journal.begin("student", space, given) for given in givens]
        if close:
            journal.close()
        return [(trial.number, values, place) for trial, values, place in found]

    whole = begun(tmp_path / "whole", {}, {}, close=False)
    first = begun(tmp_path / "killed", {})
    assert begun(tmp_path / "killed", {}, {}) == [*first, whole[1]] == whole
    # Where the next trial has other values than those of the killed ones, these lose their places.
    (number, values, place), *_ = begun(tmp_path / "killed", {"temperature": 4.0, "batch": 512})
    assert (number, place, values["batch"], values["temperature"]) == (2, 0, 512, 4.0)


def test_a_trial_that_is_begun_again_ends_early_where_it_would_have(material, tmp_path):
    known = lessons(
        {"given": (material.rows, material.cache)}, material.validation, material.probabilities, None, 0
    )
    space = known.space(Tiny().candidates(known.about)[0], "student", 96)

    def reports(folder, values, end=None):
        """The evaluations after which the next trial is to end."""
        journal, found = Journal(folder, {}, 0), []
        journal.start()
        trial, _, _ = journal.begin("student", space, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for place, value in enumerate(values, 1):
                trial.report(value, place)
                found += [place] * trial.should_prune()
        if end is not None:
            journal.end(
                trial, "student", space.candidate.key, {"state": "done", "value": end, "seconds": 1.0}
            )
        journal.close()
        return found

    for folder in (tmp_path / "whole", tmp_path / "killed"):
        reports(folder, np.linspace(1.0, 0.1, 12), 0.1)
    slow = [*np.linspace(1.0, 0.05, 6), *[0.9] * 6]  # among the best at a quarter, behind at half
    reports(tmp_path / "killed", slow[:7])
    again, whole = (reports(tmp_path / name, slow) for name in ("killed", "whole"))
    assert again == whole != []


def test_a_finished_search_trains_nothing_again(found, material):
    before = (found[1] / JOURNAL).read_bytes()
    again = material.search(keep=0.5, folder=found[1])
    assert (found[1] / JOURNAL).read_bytes() == before
    assert again.points[0].figures == found[0].points[0].figures


def test_the_journal_is_lines_of_json_and_nothing_is_pickled(found):
    lines = (found[1] / JOURNAL).read_text().splitlines()
    assert len(lines) > 20
    assert all(isinstance(json.loads(line), dict) for line in lines)
    kinds = {path.suffix for path in found[1].rglob("*") if path.is_file() and path.stat().st_size}
    assert kinds <= {".jsonl", ".json", ".safetensors"}


@pytest.mark.slow
def test_more_trials_go_on_from_the_journal(found, material, tmp_path):
    for name in (JOURNAL, "search.json"):
        (tmp_path / name).write_bytes((found[1] / name).read_bytes())
    (tmp_path / "logits").mkdir()
    for file in (found[1] / "logits").iterdir():
        (tmp_path / "logits" / file.name).write_bytes(file.read_bytes())
    more = material.search(keep=0.5, folder=tmp_path, trials=4)
    assert more.cost.trials == {"direct": 4, "student": 4}
    assert more.cost.seconds["direct"] > found[0].cost.seconds["direct"]


def test_half_a_line_of_a_killed_process_is_cut_off(found, material, tmp_path):
    whole = (found[1] / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code":4,"wor')
    (tmp_path / "search.json").write_bytes((found[1] / "search.json").read_bytes())
    journal = Journal(tmp_path, json.loads((found[1] / "search.json").read_text())["fingerprint"], 0)
    assert len(journal.records()) == 6
    journal._study("direct", "tiny/4").set_user_attr("written", True)
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())
    journal.close()


def test_processes_side_by_side_have_one_clock_and_wait_for_each_other(tmp_path):
    now = "ensdistill.student.search.journal.time.time"
    with mock.patch(now, return_value=1000.0):
        first = Journal(tmp_path, {}, 0)
        first.start()
    with mock.patch(now, return_value=1060.0):
        second = Journal(tmp_path, {}, 0)
        second.start()
        assert second.others() == [first.worker]
        assert (first.spent(), second.spent()) == (60.0, 60.0)
    begun = time.monotonic()
    second.leave(0.2)
    assert time.monotonic() - begun >= 0.2
    begun = time.monotonic()
    first.leave(60.0)  # the second one has left
    assert time.monotonic() - begun < 30
    with mock.patch(now, return_value=2000.0):
        third = Journal(tmp_path, {}, 0)
        third.start()
        assert third.spent() == 0.0  # those before it did no work
    third.close()


def test_too_few_minutes_have_one_training_of_each_role(material):
    result = material.search(keep=0.5, trials=None, minutes=1e-3)
    assert result.cost.trials == {"direct": 1, "student": 1}
    assert result.nearest or result.chosen


def test_long_trainings_end_a_search(found):
    lines = [json.loads(line) for line in (found[1] / JOURNAL).read_text().splitlines()]
    records = [one["user_attr"]["record"] for one in lines if "record" in one.get("user_attr", {})]
    assert [one["steps"] for one in records if one["final"]] == [384]
    assert {one["steps"] for one in records if not one["final"]} >= {96}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"keep": 0.6}, "goal"),
        ({"seed": 1}, "seed"),
        ({"steps": 128}, "goal"),
    ],
)
def test_the_journal_of_another_search_is_refused_by_name(found, material, change, named):
    with pytest.raises(OtherSearch, match=rf"folder: .*whose .*{named}.*remove it"):
        material.search(**({"keep": 0.5, "folder": found[1]} | change))


def test_a_journal_of_other_validation_rows_is_refused(found, material):
    fewer = material.validation.take(np.arange(250))
    with pytest.raises(OtherSearch, match="validation"):
        material.search(keep=0.5, folder=found[1], validation=fewer, ensemble=material.probabilities[:250])


def test_the_section_trains_the_chosen_student_without_a_search(found):
    section = yaml.safe_load(found[0].yaml("small"))["distill"]["students"]["small"]
    assert section["model"]["class_path"] == "ensdistill.models.MLP"
    assert section["direct"]["steps"] == section["direct"]["learning_rate"] == "auto"
    from ensdistill.job.search_config import found_student
    from ensdistill.job.student_config import StudentConfig

    student = StudentConfig(**found_student(section))
    assert student.optimization.learning_rate == found[0].chosen.values["rate"]
    assert student.network.keywords["hidden"] == section["model"]["init_args"]["hidden"]


def test_the_chosen_student_is_trained_as_long_as_one_without_a_search(material):
    known = lessons(
        {"given": (material.rows, material.cache)}, material.validation, material.probabilities, None, 0
    )
    built = Builder(material.rows.inputs, 10, 0)(Tiny().candidates(known.about)[0])
    space = known.space(built.candidate, "student", 1008)
    values = space.defaults() | {"rate": 0.01, "batch": 64, "temperature": 4.0, "alpha": 0.6, "dropout": 0.2}
    tried, longer = (section_of(built, space, values, rows)["optimization"] for rows in (None, material.rows))
    assert (tried["steps"], tried["learning_rate"]) == (1008, 0.01)
    assert (longer["steps"], longer["learning_rate"]) == (2016, 0.0086)  # 0.4 for 67 times the steps
    assert tried["batch_size"] == longer["batch_size"] == 64
    # A trial of a twentieth decides on the size alone.
    short = section_of(built, known.space(built.candidate, "student", 96), values, material.rows)
    assert {short["optimization"][name] for name in ("steps", "batch_size", "learning_rate")} == {"auto"}
    assert short["loss"] == {"temperature": 1.0, "alpha": 1.0}
    assert short["model"]["init_args"] == {"hidden": [4]}


def test_the_found_student_has_its_trials_loss_whatever_loss_the_job_has(material):
    from ensdistill.job.config import DistillConfig
    from ensdistill.job.method_config import loss_of
    from ensdistill.job.search_config import found_student
    from ensdistill.job.student_config import StudentConfig

    known = lessons(
        {"given": (material.rows, material.cache)}, material.validation, material.probabilities, None, 0
    )
    built = Builder(material.rows.inputs, 10, 0)(Tiny().candidates(known.about)[0])
    space = known.space(built.candidate, "student", 96)
    job = DistillConfig({"small": StudentConfig(keep=0.9)}, LossSettings(temperature=4.0, alpha=0.3))
    for own in ({"temperature": 1.0, "alpha": 1.0}, {"temperature": 2.0, "alpha": 0.6}):
        section = section_of(built, space, space.defaults() | own)
        assert loss_of(StudentConfig(**found_student(section)), job) == LossSettings(**own)
    del section["loss"]  # of an earlier version, which left out the default loss
    assert loss_of(StudentConfig(**found_student(section)), job) == LossSettings()


def test_a_budget_leaves_larger_candidates_out_and_the_nearest_is_shown(material):
    small = material.search(keep=1.0, max_parameters=1000, trials=1)
    assert [p.candidate for p in small.points] == ["tiny/4"]
    assert small.points[0].bytes == 4 * small.points[0].parameters < 4000
    assert small.chosen is None
    assert small.nearest == small.points[0]
    assert "no student keeps 100 % within 1,000 parameters; the nearest is tiny/4: it keeps" in str(small)
    assert "; it has 310 parameters" in str(small)


class Three(Tiny):
    def candidates(self, about):
        smallest, *others = Tiny.candidates(self, about)
        return [replace(smallest, name="2", model=partial(MLP, hidden=[2])), smallest, *others]


def test_a_larger_size_that_there_was_no_time_for_is_named_and_trained(material):
    found = material.search_flat(families=[Three()], keep=1.0, trials=1)
    assert (found.chosen, found.nearest.candidate) == (None, "tiny/4")
    assert (found.untried.candidate, found.student) == ("tiny/32", found.untried)
    assert "the nearest is tiny/4: it keeps" in found.verdict
    assert "There was no time to try tiny/32, the student that is trained instead" in found.verdict
    assert found.as_json()["untried"] == "tiny/32"
    section = yaml.safe_load(found.yaml("small"))["distill"]["students"]["small"]
    assert section["model"]["init_args"]["hidden"] == [32]
    assert section["optimization"]["learning_rate"] == found.nearest.section["optimization"]["learning_rate"]
    assert not found.untried.kept
    whole = material.search_flat(families=[Tiny()], keep=1.0, trials=1)  # tiny/32 is the largest
    assert whole.untried is None


def test_a_share_is_that_of_the_labels_where_they_show_a_gain():
    rows = np.random.default_rng(0).random((400, 3))
    labels = rows.argmax(1)
    judged = Judged(Rows(rows, np.arange(400), labels), 0.9 * np.eye(3)[labels] + 0.1 / 3)
    ensemble = ensemble_figures(judged)
    unsure, half = figures_of(np.zeros((400, 3)), judged), figures_of(np.zeros((400, 3)), judged)
    parts = ensemble.by_labels, unsure.by_labels
    between = Quality(lambda weights: sum(one.statistic(weights) for one in parts) / 2, 400, (None, None))
    half = replace(half, by_labels=between)
    found = kept(half, unsure, ensemble)
    assert found["nll"].basis == "labels"
    assert found["nll"].share == pytest.approx(0.5)
    assert found["nll"].low == pytest.approx(0.5)
    assert found["accuracy"].share == pytest.approx(0.5)
    assert kept(unsure, ensemble, unsure)["nll"].share is None  # the ensemble is worse than direct


def test_a_boosters_time_is_measured_and_counts_against_the_budget(material):
    pytest.importorskip("lightgbm")
    found = material.search_flat(families=[Boosters()], trials=1, max_latency="1ns")
    assert [(p.fits, p.runtime) for p in found.points] == [(False, "lightgbm")]
    assert found.points[0].latency > 1e-7
    assert "within 1 ns a row" in found.verdict
    assert found.chosen is None
    assert "; the nearest is boosters/8, beyond the budget: it keeps" in found.verdict
    assert f"; it has {found.nearest.bytes:,} bytes" in found.verdict


def test_a_budget_of_parameters_leaves_boosters_out_which_have_none_that_are_counted(material):
    both = material.search_flat(families=[Tiny(), Boosters()], trials=1, max_parameters=1000)
    assert {p.candidate for p in both.points} == {"tiny/4"}
    with pytest.raises(ValueError, match=r"max_parameters: expected none with boosters alone, .*; got 1000"):
        material.search_flat(families=[Boosters()], max_parameters=1000)


@pytest.mark.parametrize(
    ("ahead", "basis", "noted"),
    [
        ((0.2, 0.1, 0.3), "labels", ["NLL: 0.2 [0.1, 0.3]."]),
        ((-0.2, -0.3, 0.1), "labels", ["there is none, so a direct model is as good"]),
        ((-0.2, -0.3, -0.1), "labels", ["[-0.3, -0.1]: it is a loss, so a direct model is better."]),
        (
            (0.2, -0.1, 0.3),
            "ensemble",
            [
                "not beyond its interval, so a direct model may be as good",
                "do not show whether the ensemble has a gain over direct in NLL. Of the 4 rows that judged, 1 "
                "have a label and 2 are synthetic. A share with a star is likeness",
            ],
        ),
        (None, "ensemble", ["The labels do not show whether the ensemble has a gain over direct in NLL."]),
    ],
)
def test_the_notes_state_what_labels_show_of_the_gain(ahead, basis, noted):
    judged = Judged(
        Rows(np.zeros((4, 2)), np.arange(4), np.array([0, *3 * [UNLABELLED]])), np.full((4, 3), 1 / 3)
    )
    kept_by = {"nll": Kept(0.0, None, None, basis), "accuracy": Kept(0.0, None, None, "labels")}
    gains = {"nll": ahead, "accuracy": None}
    notes = _notes(gains, kept_by, None, mock.Mock(judged=judged, synthetic=2))
    assert len(notes) == len(noted)
    for text, note in zip(noted, notes, strict=True):
        assert text in note


def test_the_verdict_without_any_gain_states_that_there_is_none_to_keep(found):
    result, _ = found
    none = {"nll": Kept(None, None, None, "labels", worse=True), "accuracy": Kept(None, None, None, "labels")}
    without = replace(result, chosen=None, nearest=replace(result.points[0], candidate="tiny/32", kept=none))
    assert without.verdict.startswith(
        "there is no gain to keep; the nearest student is tiny/32: in NLL the ensemble has no gain over direct, "
        "and the student is worse than direct; in accuracy the ensemble has no gain over direct; it has"
    )
    some = {"nll": none["nll"], "accuracy": Kept(0.5, None, None, "labels")}
    without = replace(without, nearest=replace(without.nearest, kept=some))
    assert without.verdict.startswith("no student keeps 50 %; the nearest is tiny/32: it keeps 50 %")


@pytest.mark.parametrize(("gain", "narrow"), [(2.0, True), (0.01, False)])
def test_the_least_number_of_rows_that_judge_promises_no_interval(gain, narrow):
    """Of 203 rows, the interval of a kept 95 % depends on the ensemble's gain over direct."""
    rows = np.random.default_rng(0).normal(size=(LEAST, 3))
    student, ensemble = (share * gain + noise for share, noise in zip((0.95, 1.0), rows.T, strict=False))
    direct = 0.0 * rows[:, 2]
    models = [
        of_rows(values - values.mean() + share * gain, direct)
        for values, share in ((student, 0.95), (direct, 0.0), (ensemble, 1.0))
    ]
    found = _share(models, 0, "labels")
    assert found.share == pytest.approx(0.95)
    assert (found.low is not None and found.high - found.low < 1) == narrow


def test_where_the_ensemble_has_no_gain_in_one_metric_the_other_decides():
    rows = np.random.default_rng(0).random((400, 3))
    labels = rows.argmax(1)
    judged = Judged(Rows(rows, np.arange(400), labels), 0.9 * np.eye(3)[labels] + 0.1 / 3)
    ensemble = ensemble_figures(judged)
    # Of one mind about the classes, so accuracies are equal; unsure, so that there is a gain in NLL.
    direct = figures_of(np.log(judged.ensemble), judged, Scaling(temperature=4.0))
    near = figures_of(np.log(judged.ensemble), judged, Scaling(temperature=1.5))
    found = kept(near, direct, ensemble)
    assert found["accuracy"].share is None
    assert least(found) == found["nll"].share > 0.5
    logits = np.log(judged.ensemble)
    logits[:40] = logits[:40][:, ::-1]  # most of these rows have another class
    wrong = kept(figures_of(logits, judged, Scaling(temperature=4.0)), direct, ensemble)
    assert wrong["accuracy"].worse
    assert least(wrong) is None


@pytest.mark.slow
def test_minutes_end_a_search(material):
    with mock.patch("ensdistill.student.search.clock.time.monotonic", side_effect=itertools.count()):
        result = material.search(trials=None, steps=64, minutes=0.4, keep=0.5)  # 24 looks at the clock
    assert 2 <= sum(result.cost.trials.values()) <= 12
    assert min(result.cost.trials.values()) >= 1


def _process(material, folder, trials):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from search_helpers import Material, Tiny\n"
        "import tempfile\n"
        f"Material(tempfile.mkdtemp() + '/cache').search(keep=0.5, folder={str(folder)!r}, trials={trials})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


@pytest.mark.slow
def test_two_processes_share_a_search_and_a_killed_one_goes_on(material, tmp_path):
    both = [_process(material, tmp_path, 40) for _ in range(2)]
    journal = tmp_path / JOURNAL
    while (
        not journal.exists()
        or journal.read_bytes().count(b'"state": "done"') + journal.read_bytes().count(b'"state":"done"') < 6
    ):
        time.sleep(0.05)
        assert all(one.poll() is None for one in both)
    for one in both:
        one.send_signal(signal.SIGKILL)
        one.wait()
    last = [_process(material, tmp_path, 8) for _ in range(2)]
    assert [one.wait(300) for one in last] == [0, 0]
    result = material.search(keep=0.5, folder=tmp_path, trials=8)
    assert min(result.cost.trials.values()) >= 8
    numbers = [line for line in journal.read_text().splitlines() if json.loads(line)]
    assert len(numbers) == journal.read_bytes().count(b"\n")
