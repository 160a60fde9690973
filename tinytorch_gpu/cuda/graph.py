"""Launches recorded once and repeated as one: a CUDA graph, or a checked list on the emulated device."""

from collections.abc import Callable

from ..devices import Device


class CudaGraph:
    """What ``run`` launches, captured into a CUDA graph; ``replay()`` is one call."""

    def __init__(self, place: Device, run: Callable[[], None]):
        cupy = place.xp
        self._run = run  # holds the memory that the graph reads and writes
        self._stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()
        with self._stream:
            self._stream.begin_capture()
            try:
                run()
            finally:
                self._graph = self._stream.end_capture()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.launch()


class EmulatedGraph:
    """The same launches one by one, under the rules of a capture: no host copy, no allocation."""

    def __init__(self, place: Device, run: Callable[[], None]):
        self._run = run

    def replay(self) -> None:
        """Run the launches; what a graph could not hold is a CaptureError."""
        from ..emulated.arrays import capturing

        with capturing():
            self._run()


def graph_of(place: Device, run: Callable[[], None]) -> CudaGraph | EmulatedGraph:
    """Capture what ``run`` launches on ``place``. It must have run before, so that all is compiled."""
    return (CudaGraph if place.kind == "cuda" else EmulatedGraph)(place, run)
