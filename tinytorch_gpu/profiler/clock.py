"""Times of a call, on any device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from ..devices import Device, device


def seconds_of(
    run: Callable[[], Any], place: "Device | str" = "cpu", warmup: int = 2, times: int = 5
) -> float:
    """The median seconds of ``times`` calls after ``warmup`` others, the device's work included."""
    place = device(place)
    for _ in range(warmup):
        run()
    place.synchronize()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        place.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
