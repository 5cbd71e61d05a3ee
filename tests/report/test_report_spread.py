"""The members' disagreement that a student kept."""

from __future__ import annotations

import numpy as np
import pytest
from report_cases import run_results
from sklearn.metrics import roc_auc_score

from ensdistill.report.judge import judge
from ensdistill.report.ranks import auroc, rank_correlation
from ensdistill.report.sections import spread


def test_the_area_is_scikit_learns_with_ties():
    generator = np.random.default_rng(0)
    known, strange = generator.integers(0, 5, 200) / 4, generator.integers(1, 6, 50) / 4
    truth = np.r_[np.zeros(200), np.ones(50)]
    assert auroc(known, strange) == pytest.approx(roc_auc_score(truth, np.r_[known, strange]), rel=1e-12)
    assert auroc(np.zeros(3), np.ones(2)) == 1
    assert auroc(np.ones(3), np.ones(2)) == 0.5


def test_the_report_has_the_students_figures_beside_the_ensembles():
    results = run_results(seeds=(0, 1))
    found = judge(results, resamples=2000)["students"]["mlp"]["spread"]
    own, ensemble = results.students[0].spreads["student"], results.spreads
    for seed in range(2):
        one = own[seed]
        expected = auroc(one.knowledge, one.strange_knowledge)
        assert found["student"]["ood_auroc"]["per_seed"][seed] == expected
        total = auroc(one.total, one.strange_total)
        assert found["student"]["ood_auroc_total"]["per_seed"][seed] == total != expected
        direct = results.students[0].spreads["direct"][seed]
        assert found["direct"]["ood_auroc"]["per_seed"][seed] == auroc(direct.total, direct.strange_total)
        assert found["direct"]["rank_with_members"]["per_seed"][seed] == rank_correlation(
            direct.total, ensemble[seed].knowledge
        )
    assert found["student"]["rank_with_members"]["mean"] == 1
    assert (found["direct"]["keeps_members"], found["student"]["keeps_members"]) == (False, True)


def test_the_section_names_the_rows_and_leaves_out_ranks_without_an_ensemble():
    report = judge(run_results(seeds=(0,)), resamples=2000)
    (mlp,) = list(spread(report))
    assert mlp.title == "Members' disagreement kept: mlp"
    assert "The rows out of distribution: rows of another table." in mlp.about
    assert [row[:2] for row in mlp.rows] == [
        ("ensemble", "members"),
        ("direct", "entropy"),
        ("student", "members"),
    ]
    assert len(mlp.columns) == len(mlp.rows[0]) == 6
    report = judge(run_results(seeds=(0,), spreads=[]), resamples=2000)
    (mlp,) = list(spread(report))
    assert [row[0] for row in mlp.rows] == ["direct", "student"]
    assert len(mlp.columns) == len(mlp.rows[0]) == 5
