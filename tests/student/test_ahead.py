"""Results that are made ahead on another thread."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from ensdistill.student.blocks import OneAhead


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads(_):
    """Those of torch and of OpenMP, as the thread that calls this would use them."""
    torch.randn(300, 300).exp()  # where torch would start a team
    of_openmp = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
    return torch.get_num_threads(), of_openmp


@pytest.mark.parametrize("alone", [True, False])
def test_a_thread_that_copies_has_no_team(two_threads, alone):
    here = threads(None)
    assert here[0] == 2
    with OneAhead(threads, alone=alone) as results:
        results.ahead(1)
        assert results.of(1) == ((1, {1}) if alone else here)
        assert results.of(2) == here  # on this thread
    assert threads(None) == here
