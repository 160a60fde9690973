"""Small results on their way to the host while the device goes on."""

from typing import Any

from .. import nvtx
from ..backend import to_numpy


class CudaReader:
    """Copies arrays of one shape to pinned memory in the order of the stream: ``start`` returns at once,
    and ``wait`` waits for that copy alone, not for what was launched after it."""

    def __init__(self, place: Any, like: Any):
        cupy = place.xp
        import cupyx

        self._stream, self._event = (
            cupy.cuda.get_current_stream,
            cupy.cuda.Event(disable_timing=True),
        )
        self._host = cupyx.empty_pinned(like.shape, like.dtype)

    def start(self, x: Any) -> None:
        """Let the copy follow what has been launched so far."""
        stream = self._stream()
        x.get(stream=stream, out=self._host, blocking=False)
        self._event.record(stream)

    def wait(self) -> Any:
        """Return the numbers; they are overwritten by the next ``start``."""
        with nvtx.span("d2h", "io", self._host.nbytes):
            self._event.synchronize()
        return self._host


class EmulatedReader:
    """The same on the emulated device, which does everything at once: what counts is that a launch
    between ``start`` and ``wait`` does not change what is read."""

    def __init__(self, place: Any, like: Any):
        self._copy = place.zeros(like.shape, like.dtype)

    def start(self, x: Any) -> None:
        """Note the numbers of now, on the device."""
        self._copy[...] = x

    def wait(self) -> Any:
        """Return them; a wait for the device."""
        return to_numpy(self._copy)


def reader(place: Any, like: Any) -> CudaReader | EmulatedReader:
    """Return what reads arrays of the shape and dtype of ``like`` from ``place``."""
    return (CudaReader if place.kind == "cuda" else EmulatedReader)(place, like)
