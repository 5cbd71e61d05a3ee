from zlib import crc32

import pytest

DEVICES = ("H100", "tiny")  # of test_cuda_shim_encoders.py


@pytest.hookimpl(tryfirst=True)  # before the slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Half of the encoders' cases run on one device, half on the other; on its other device a case is a slow test.

    The CPU runs a GPU's threads one after the other, so the cases on both devices took a minute and more.
    """
    for item in items:
        if item.path.name != "test_cuda_shim_encoders.py":
            continue
        parts = item.callspec.id.split("-")
        (device,) = {*DEVICES} & {*parts}
        case = "-".join([item.originalname, *(part for part in parts if part != device)])
        if device != DEVICES[crc32(case.encode()) % 2]:
            item.add_marker(pytest.mark.slow)
