"""Sources of synthetic rows in a job: ODS along the job's own ensemble, and refusals before any work."""

import numpy as np
import pytest
from job_helpers import JOB, flat, run, succeed, write_job
from safetensors.numpy import load_file

from ensdistill.common.files import read_json

SYNTHETIC = "cache.transfer.synthetic"
ODS = {"class_path": "Diversity", "init_args": {"rows": 20, "step": 0.05}}
TEXTS = {"class_path": "DropTokens", "init_args": {"rows": 9}}
COLUMNS = {"class_path": "Munge", "init_args": {"rows": 9, "categorical": [3]}}


def test_ods_perturbs_along_the_jobs_ensemble(tmp_path):
    file = write_job(tmp_path, {SYNTHETIC: [ODS], "teachers.members": JOB["teachers"]["members"][:1]})
    succeed("cache", "build", file)
    folder = tmp_path / "runs" / "tiny" / "seed-0" / "cache"
    assert read_json(folder / "stage.json")["origin"][-1] == ["diversity", 20]
    inputs = load_file(folder / "transfer.safetensors")["inputs"].reshape(220, 64)
    moved = inputs[200:] - inputs[:20]
    length = np.sqrt((moved**2).mean(1))
    assert (length <= 0.05 + 1e-6).all()  # the step times the member's confidence
    assert (length > 0.005).all()


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([ODS], "cache.transfer.synthetic.0: Diversity needs members that are torch modules"),
        (
            [ODS, TEXTS],
            "cache.transfer.synthetic.1 (DropTokens): droptokens: expected a list of strings; got array",
        ),
        ([COLUMNS], "munge: categorical: expected none, because the inputs are no table"),
    ],
)
def test_sources_that_do_not_fit_are_refused_before_any_work(tmp_path, sources, words):
    status, _, err = run("cache", "build", write_job(tmp_path, {SYNTHETIC: sources}))
    assert status == 1
    assert words in flat(err)
    assert not list(tmp_path.glob("runs/tiny/seed-*"))
