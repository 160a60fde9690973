"""The device that this runs on, measured: what it reaches, not what its maker says."""

import datetime
import math
import platform
import time
from collections.abc import Callable
from typing import Any

from .. import ops
from ..core.tensor import no_grad
from ..devices import Device, device
from ..training.pace import peak_flops
from .spec import DeviceSpec

SECONDS = 0.25  # for each measurement


def measure_device(
    place: Any = "cpu", dtype: str = "float32", seconds: float | None = None
) -> DeviceSpec:
    """Peak rates of ``place``: a square product, reading a large matrix once, arithmetic and exponentials on
    values that stay in cache, and the least time of an operation. Takes about six times ``seconds`` (``SECONDS`` by default)."""
    place, seconds = device(place), seconds or SECONDS
    if place.kind not in ("cpu", "cuda"):
        raise ValueError(f"{place} has no clock: measure cpu or cuda")
    rates = {"float32": peak_flops(place, "float32", seconds)}
    if dtype != "float32" and not (place.kind == "cpu" and dtype in ("float16", "bfloat16")):
        rates[dtype] = peak_flops(place, dtype, seconds)
    with place.active():
        bandwidth = _bandwidth(place, seconds)
        vector, special = _elementwise(place, seconds)
        call = _call(place, seconds)
    return DeviceSpec(
        device_name(place), "gpu" if place.kind == "cuda" else "cpu", _memory(place), bandwidth, rates, vector,
        special, call, "", "measured", datetime.date.today().isoformat(),
    )  # fmt: skip


def _best(place: Device, run: Callable[[], Any], seconds: float, times: int = 1) -> float:
    """The shortest time of ``run``, of as many as fit; made ``times`` times between two looks at the clock."""
    run()
    place.synchronize()
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(times):
            run()
        place.synchronize()
        best = min(best, (time.perf_counter() - start) / times)
    return best


def _bandwidth(place: Device, seconds: float) -> float:
    """A matrix that fits no cache times a vector, either way round: it is read once."""
    rows, width = (16384, 4096) if place.kind == "cuda" else (8192, 4096)
    matrix = place.zeros((rows, width))
    matrix += 1
    wide, long = place.zeros((width,)), place.zeros((rows,))
    times = [_best(place, lambda: place.xp.dot(matrix, wide), seconds / 2),
             _best(place, lambda: place.xp.dot(long, matrix), seconds / 2)]  # fmt: skip
    return rows * width * 4 / min(times)


def _elementwise(place: Device, seconds: float) -> tuple[float, float]:
    """(additions and multiplications, exponentials) a second."""
    count = 1 << (26 if place.kind == "cuda" else 14)
    x, out = place.zeros((count,)), place.zeros((count,))
    x += 0.5
    xp, times = place.xp, 1 if place.kind == "cuda" else 20

    def arithmetic() -> None:
        xp.multiply(x, 1.5, out=out)
        xp.add(out, x, out=out)

    def exponentials() -> None:
        xp.exp(x, out=out)

    vector = 2 * count / _best(place, arithmetic, seconds / 2, times)
    return vector, count / _best(place, exponentials, seconds / 2, times)


def _call(place: Device, seconds: float) -> float:
    """The time of an operation on one row of four numbers."""
    x, gain = place.zeros((1, 1, 4)), place.zeros((4,))
    with no_grad():
        return _best(place, lambda: ops.rms_norm(x, gain), seconds / 2, 20)


def device_name(place: Device) -> str:
    """A processor's name as its maker calls it; nothing about the machine around it."""
    if place.kind == "cuda":
        found = place.xp.cuda.runtime.getDeviceProperties(place.index)["name"]  # type: ignore[attr-defined]
        return found.decode() if isinstance(found, bytes) else str(found)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory(place: Device) -> float:
    """Bytes of the device's memory; where the system does not say, a nominal 8 GB."""
    if place.kind == "cuda":
        return float(place.xp.cuda.runtime.memGetInfo()[1])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return (
                float(next(line.split()[1] for line in lines if line.startswith("MemTotal"))) * 1024
            )
    except (OSError, StopIteration):
        return 8e9
