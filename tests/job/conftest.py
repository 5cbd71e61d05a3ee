"""Copies of the finished job that a test may change."""

import shutil
from pathlib import Path

import pytest
from job_helpers import write_job


@pytest.fixture
def copy(finished_job: Path, tmp_path: Path) -> Path:
    """A copy of the finished job: its run folder; job.yaml is two folders up."""
    write_job(tmp_path)
    shutil.copytree(finished_job, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"
