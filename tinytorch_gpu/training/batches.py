"""Batches of windows: every window once an epoch, in an order that nothing needs to remember."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy

_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """A 64-bit hash of a whole number (the finalizer of splitmix64: Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def shuffled(index: int, count: int, key: int) -> int:
    """Where ``index`` of ``count`` goes in the permutation that ``key`` names.

    A Feistel network over the next power of four, walked until it falls below ``count`` (Black &
    Rogaway 2002): no list of all places is ever made.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            left, right = right, left ^ _mixed(key ^ _mixed(4 * right + turn)) & low
        index = left << half | right
        if index < count:
            return index


class DataLoader:
    """An endless stream of batches: inputs (B, T) and targets (B, T), the inputs' next tokens.

    Tokens are cut into windows of ``length``, at another place each epoch, and each window comes
    once, in a new order. What is left at the ends, less than two windows, waits for another epoch.
    """

    def __init__(
        self, tokens: Any, batch: int, length: int, *, seed: int = 0, shuffle: bool = True
    ):
        if batch < 1 or length < 1:
            raise ValueError(f"batch ({batch}) and length ({length}) must be at least 1")
        if len(tokens) < length + 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for a window of {length} and its next token: "
                f"take more text, or a length of at most {len(tokens) - 1}"
            )
        self.tokens, self.batch, self.length = tokens, batch, length
        self.seed, self.shuffle = seed, shuffle
        self.epoch = self.index = 0

    def _window(self) -> int:
        """Where the next window begins."""
        spare = (len(self.tokens) - 1) % self.length
        room = len(self.tokens) - 1 - spare
        # Cutting elsewhere may cost a window, but only where there are some.
        key = _mixed(self.seed ^ _mixed(self.epoch))
        shift = key % (self.length if room > self.length else spare + 1) if self.shuffle else 0
        count = (len(self.tokens) - 1 - shift) // self.length
        if self.index >= count:
            self.epoch, self.index = self.epoch + 1, 0
            return self._window()
        place = shuffled(self.index, count, key) if self.shuffle else self.index
        self.index += 1
        return shift + place * self.length

    def next(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The next batch: inputs and targets on the host, int64."""
        starts = [self._window() for _ in range(self.batch)]
        both = numpy.stack([self.tokens[s : s + self.length + 1] for s in starts]).astype(
            numpy.int64
        )
        return both[:, :-1], both[:, 1:]

    def __iter__(self) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        while True:
            yield self.next()

    def _of(self) -> dict[str, Any]:
        return {
            "tokens": len(self.tokens),
            "length": self.length,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where it is, in plain values."""
        return {**self._of(), "epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the state of other data is a ValueError."""
        for name, own in self._of().items():
            if state.get(name) != own:
                raise ValueError(
                    f"this position is one in other data: {name} {state.get(name)!r}, here {own!r}"
                )
        self.epoch, self.index = int(state["epoch"]), int(state["index"])


def windows(tokens: Any, batch: int, length: int) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Batches in which every token but the first is a target once, in order; the last ones are smaller."""
    rows = (len(tokens) - 1) // length
    for first in range(0, rows, batch):
        last = min(first + batch, rows)
        part = numpy.asarray(tokens[first * length : last * length + 1]).astype(numpy.int64)
        yield part[:-1].reshape(-1, length), part[1:].reshape(-1, length)
    rest = numpy.asarray(tokens[rows * length :]).astype(numpy.int64)
    if len(rest) > 1:
        yield rest[None, :-1], rest[None, 1:]
