"""Sources of synthetic rows in a job: ODS along the job's own ensemble, and refusals before any work."""

import numpy as np
import pytest
from job_helpers import JOB, flat, run, succeed, write_job
from safetensors.numpy import load_file

from ensdistill import Ensemble, TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.files import read_json
from ensdistill.data.versions import view_inputs
from ensdistill.job.run_folder import RunFolder

SYNTHETIC = "cache.transfer.synthetic"
ODS = {"class_path": "Diversity", "init_args": {"rows": 20, "step": 0.05}}
TEXTS = {"class_path": "DropTokens", "init_args": {"rows": 9}}
EXCHANGE = {"class_path": "Exchange", "init_args": {"rows": 150, "noise": 0.2}}
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
    assert status == 2
    assert words in flat(err)
    assert not list(tmp_path.glob("runs/tiny/seed-*"))


def test_a_whole_job_with_new_synthetic_rows_in_each_version(copy):
    file = write_job(copy.parents[1], {SYNTHETIC: [EXCHANGE], "cache.views": 3})
    out = flat(succeed("run", file))
    assert "350 in the transfer set (the teachers predicted 1050 rows, in 3 versions)" in out
    targets = copy / "seed-0" / "cache" / "targets"
    cache, config = TargetCache.open(targets), load_config(["--config", str(file)])
    assert (cache.views, len(cache)) == (3, 350)
    rows = RunFolder(config).transfer(0)
    # The targets are those of rows made anew, in this process.
    rounds = config.cache.changes(config.split(0), 0)
    ensemble = Ensemble.load(targets.parents[1] / "teachers" / "ensemble")
    inputs = view_inputs(rounds, rows.inputs, rows.uids, 2, 0)
    assert not (inputs[200:] == rows.inputs[200:]).all((1, 2, 3)).any()
    cache.verify_inputs(rows.uids, inputs, 2)
    away = np.abs(cache.gather_logits(rows.uids, 2) - ensemble.predict_logits(inputs).numpy())
    assert away.mean() < 0.1
    verify = ("cache", "verify", str(targets), "--against-teachers", "0.1")
    assert "35 samples: the teachers' predictions equal" in flat(succeed(*verify, "--config", str(file)))
    status, _, err = run(*verify)
    assert (
        status,
        "--config: expected a job's YAML file with the cache.augment or cache.views" in flat(err),
    ) == (
        2,
        True,
    )
