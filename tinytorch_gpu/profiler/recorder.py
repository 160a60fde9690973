"""Ranges of a real run with their times and memory: a listener in the place of Nsight.

The library opens a range for every phase, layer, part and operation while ``nvtx.on``; the recorder is the
domain that they go to.
"""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import nvtx
from ..devices import Device


@dataclass
class Span:
    """One range: when it began and ended, in seconds; bytes alive at both, and the most between."""

    name: str
    category: str
    payload: int | None
    begin: Any = 0.0
    end: Any = 0.0
    before: int = 0
    after: int = 0
    peak: int = 0
    children: list["Span"] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it was open."""
        return self.end - self.begin


class _HostClock:
    """The processor's own clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, mark: float) -> float:
        return mark


class _EventClock:
    """Events in the GPU's stream: when the work before them was done."""

    def __init__(self, place: Device):
        self.cuda = place.xp.cuda
        self.start = self.mark()

    def mark(self) -> Any:
        event = self.cuda.Event()
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        mark.synchronize()
        return float(self.cuda.get_elapsed_time(self.start, mark)) / 1e3


class _TracedMemory:
    """What is allocated since tracing began, as tracemalloc sees it: NumPy tells it of its arrays."""

    def sample(self) -> tuple[int, int]:
        """(bytes now, the most since the last sample)."""
        found = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        return found


class _PoolMemory:
    """Bytes in use in the pool of a GPU; a peak between two samples is not seen."""

    def __init__(self, place: Device):
        self.place = place

    def sample(self) -> tuple[int, int]:
        used = self.place.memory()["used"]
        return used, used


@dataclass
class _Attributes:
    """What a range is made of, as nvtx's own: its payload changes from one to the next."""

    name: str
    category: str
    payload: int | None = None


class Recorder:
    """An NVTX domain that keeps every range; ``spans`` are the outermost, ``timeline`` the memory over time."""

    def __init__(self, place: Device, memory: bool = False):
        self.clock: Any = _EventClock(place) if place.kind == "cuda" else _HostClock()
        self.memory: Any = None
        if memory:
            self.memory = _PoolMemory(place) if place.kind == "cuda" else _TracedMemory()
        self.spans: list[Span] = []
        self.timeline: list[tuple[Any, int, str]] = []
        self._open: list[Span] = []

    # --- what nvtx calls ---
    def get_event_attributes(self, message: str, color: str, category: str) -> _Attributes:
        return _Attributes(message, category)

    def push_range(self, attributes: _Attributes) -> None:
        span = Span(attributes.name, attributes.category, attributes.payload)
        (self._open[-1].children if self._open else self.spans).append(span)
        if self.memory is not None:
            span.before = span.peak = self._sample(span.name)
        self._open.append(span)
        span.begin = self.clock.mark()

    def pop_range(self) -> None:
        mark = self.clock.mark()
        span = self._open[-1]
        span.end = mark
        if self.memory is not None:
            span.after = self._sample(span.name)
        self._open.pop()

    def _sample(self, name: str) -> int:
        now, peak = self.memory.sample()
        for span in self._open:
            span.peak = max(span.peak, peak)
        self.timeline.append((self.clock.mark(), now, name))
        return now

    def finish(self) -> None:
        """Turn the clock's marks into seconds from the first range on."""
        waiting = list(self.spans)
        while waiting:
            span = waiting.pop()
            span.begin, span.end = self.clock.seconds(span.begin), self.clock.seconds(span.end)
            waiting += span.children
        first = self.spans[0].begin if self.spans else 0.0
        self.timeline = [(self.clock.seconds(t) - first, n, name) for t, n, name in self.timeline]


@contextmanager
def recording(place: Device, memory: bool = False) -> Iterator[Recorder]:
    """Record the ranges of a block. With ``memory`` their bytes too, which slows the CPU down: take times from
    another run."""
    made = Recorder(place, memory)
    tracing = memory and place.kind != "cuda" and not tracemalloc.is_tracing()
    if tracing:
        tracemalloc.start(1)
    nvtx.enable(made)
    try:
        yield made
    finally:
        nvtx.disable()
        nvtx.enable()  # a tool that listened before listens again
        if tracing:
            tracemalloc.stop()
        place.synchronize()
        made.finish()
