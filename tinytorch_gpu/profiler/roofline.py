"""The least time of each operation on a device, and what bounds it (Williams et al. 2009, "Roofline").

An operation takes at least as long as its arithmetic at the peak rates, as its bytes at the memory's, and as a
call costs. On a GPU matrix units, vector lanes and special units work beside each other, so the slowest
counts; on a CPU they are the same units, and the times add up.
"""

from dataclasses import dataclass
from typing import Any

from .account import Phase, Row
from .calls import Setting
from .costs import Cost
from .spec import DeviceSpec

COMPUTE, MEMORY, CALL = "compute", "memory", "call"


@dataclass(frozen=True)
class Timed:
    """A row of a phase, its least ``seconds`` on the device and what bounds them: ``compute``, ``memory`` or
    ``call``."""

    row: Row
    seconds: float
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.row.to_dict(), "seconds": self.seconds, "bound": self.bound}


@dataclass(frozen=True)
class Roofline:
    """A phase on a device."""

    phase: Phase
    device: DeviceSpec
    dtype: str
    rows: tuple[Timed, ...]

    @property
    def seconds(self) -> float:
        """The least time of the phase, its operations one after another."""
        return sum(row.seconds for row in self.rows)

    @property
    def tokens_per_second(self) -> float:
        """The highest pace."""
        return self.phase.tokens / self.seconds if self.seconds else 0.0

    @property
    def bound(self) -> str:
        """What bounds most of the time."""
        shares = {kind: self.share(kind) for kind in (COMPUTE, MEMORY, CALL)}
        return max(shares, key=lambda kind: shares[kind])

    def share(self, bound: str) -> float:
        """The share of the time that is bound by ``bound``."""
        return sum(r.seconds for r in self.rows if r.bound == bound) / (self.seconds or 1)

    @property
    def ridge(self) -> float:
        """The arithmetic intensity from which products are bound by compute."""
        return self.device.peak(self.dtype) / self.device.bandwidth

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "phase": self.phase.name, "device": self.device.to_dict(), "dtype": self.dtype,
            "tokens": self.phase.tokens, "seconds": self.seconds, "bound": self.bound,
            "tokens_per_second": self.tokens_per_second, "ridge": self.ridge,
            "total": self.phase.cost.to_dict(), "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip


def roofline(phase: Phase, setting: Setting, device: DeviceSpec) -> Roofline:
    """The least times of a phase on a device."""
    dtype = product_dtype(setting)
    rows = []
    for row in phase.rows:
        seconds, bound = least_time(row.cost, device, dtype, row.calls)
        rows.append(Timed(row, seconds, bound))
    return Roofline(phase, device, dtype, tuple(rows))


def product_dtype(setting: Setting) -> str:
    """The dtype that products are computed in: that of the activations."""
    return setting.activations.name


def least_time(cost: Cost, device: DeviceSpec, dtype: str, calls: int = 1) -> tuple[float, str]:
    """(seconds, what bounds them) of operations made by ``calls`` calls."""
    parts = (
        cost.matrix / device.peak(dtype), cost.vector / device.vector, cost.special / device.special,
    )  # fmt: skip
    compute = max(parts) if device.kind == "gpu" else sum(parts)
    times = {COMPUTE: compute, MEMORY: cost.bytes / device.bandwidth, CALL: calls * device.call}
    bound = max(times, key=lambda kind: times[kind])
    return times[bound], bound
