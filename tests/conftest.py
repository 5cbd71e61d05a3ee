from collections.abc import Iterator

import pytest

from ensdistill import ops


@pytest.fixture(params=ops.build_info()["cpu"]["runnable"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU instruction set that runs here; the one in use before is back afterwards."""
    before = ops.instruction_set()
    ops.use_instruction_set(request.param)
    yield request.param
    ops.use_instruction_set(before)
