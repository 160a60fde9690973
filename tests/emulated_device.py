"""The emulated device for test modules: without a C++ compiler they skip and say so, except in CI."""

import os
from typing import Any

import pytest

from tinytorch_gpu import devices


def emulated_device() -> Any:
    """The device, or a skip of the whole module."""
    try:
        place = devices.device("emulated")
    except devices.DeviceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error), allow_module_level=True)
    devices.load_makers("emulated")
    return place
