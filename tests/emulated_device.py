"""The emulated device for test modules: without a C++ compiler they skip and say so, except in CI."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tinytorch_gpu import devices, emulated
from tinytorch_gpu.emulated import traffic


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


def kernels_of_replays(step: Callable[[], Any]) -> list[str]:
    """What a captured step launches, the same three times over, without the host and without memory."""
    before = (traffic.syncs, traffic.uploads, traffic.allocations)
    shapes = []
    for _ in range(3):
        with emulated.recorded() as launches:
            step()
        shapes.append([(launch.kernel, launch.grid, launch.block) for launch in launches])
    assert (traffic.syncs, traffic.uploads, traffic.allocations) == before
    assert shapes[0] == shapes[1] == shapes[2]
    return [kernel for kernel, *_ in shapes[0]]
