from zlib import crc32

import pytest

DEVICES = ("H100", "tiny")  # of test_cuda_shim_encoders.py
DOUBLE = "dtype3"  # of test_cuda_shim.py: float64
PAIRS = "test_every_pair_of_types"


@pytest.hookimpl(tryfirst=True)  # before the slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Half of the encoders' cases run on one device, half on the other; on its other device a case is a slow test.
    Half of the pairs of types are slow tests, and so are all other cases in double precision.

    The CPU runs a GPU's threads one after the other, so all of these took minutes.
    """
    for item in items:
        if item.path.name == "test_cuda_shim_encoders.py" and _device(item) is not None:
            parts = item.callspec.id.split("-")
            case = "-".join([item.originalname, *(part for part in parts if part != _device(item))])
            slow = _device(item) != DEVICES[crc32(case.encode()) % 2]
        elif item.path.name == "test_cuda_shim.py" and hasattr(item, "callspec"):
            double = DOUBLE in item.callspec.id.split("-")
            half = sum(item.callspec.indices.values()) % 2
            slow = bool(half) if item.originalname == PAIRS else double
        else:
            slow = False
        if slow:
            item.add_marker(pytest.mark.slow)


def _device(item: pytest.Item) -> str | None:
    found = {*DEVICES} & {*item.callspec.id.split("-")} if hasattr(item, "callspec") else set()
    return next(iter(found), None)
