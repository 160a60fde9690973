"""How the next token is chosen, with every parameter in device memory."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy

from .. import nvtx, ops
from ..backend import to_numpy
from ..core.tensor import Tensor
from ..devices import Device
from ..rng import Generator


@dataclass(frozen=True)
class Sampling:
    """The choices of a generation; a value out of range is a ValueError.

    ``temperature`` 0 takes the likeliest token; None or 0 for ``top_k``, None or 1 for ``top_p``,
    None or 0 for ``min_p`` and None or 1 for ``repetition_penalty`` turn them off.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Real) and (value is not None or name == "temperature"):
                raise ValueError(f"{name} must be a number, not {value!r}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or above, not {self.temperature}")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k must be a whole number, 0 or above, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 to 1, not {self.min_p}")
        penalty = self.repetition_penalty
        if penalty is not None and not 0 < penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0, not {penalty}")


class Sampler:
    """Chooses tokens for a batch; remembers which each row has seen if there is a penalty.

    ``ids`` (B, 1) holds the tokens chosen last, on the device, where the next step reads them.
    ``state`` names the next draw: [seed, offset], or with ``own_draws`` a pair (B, 2) for each row.
    Both stay where they are in memory, so that a captured step can use them.
    """

    def __init__(
        self, sampling: Sampling, batch: int, vocab_size: int, place: Device, seed: Any,
        own_draws: bool = False,
    ):  # fmt: skip
        self.sampling, self.batch, self.place = sampling, batch, place
        self.greedy, self.vocab_size = sampling.temperature == 0, vocab_size

        def per_row(value: float, dtype: str = "float32") -> Any:
            return place.asarray([value] * batch, dtype)

        self.temperature = per_row(sampling.temperature)
        self.top_k = per_row(sampling.top_k or 0, "int64")
        self.top_p = per_row(sampling.top_p or 1.0)
        self.min_p = per_row(sampling.min_p or 0.0)
        self.state = Generator(place, seed).next()
        if own_draws:
            self.state = place.asarray(numpy.tile(to_numpy(self.state), (batch, 1)))
        self.ids = place.zeros((batch, 1), "int64")
        self.penalty = self.seen = None
        if sampling.repetition_penalty not in (None, 1.0):
            self.penalty = per_row(float(sampling.repetition_penalty or 1.0))
            self.seen = place.zeros((batch, vocab_size), "bool")

    def see(self, ids: Any) -> None:
        """Remember tokens (B, T) for the repetition penalty; -1 is none."""
        if self.seen is not None:
            ops.mark_seen(self.seen, ids)

    def __call__(self, logits: Tensor) -> Any:
        """Return the next token of each row of ``logits`` (B, V): ids (B,) on the device."""
        with nvtx.span("sample", "op", logits.tokens):
            ids = self._choose(logits, self.state)
            self.see(ids[:, None])
            ops.feed(self.ids, ids, self.state)
        return ids

    def _choose(self, logits: Tensor, state: Any) -> Any:
        if self.seen is not None:
            logits = ops.penalize(logits, self.seen, self.penalty)
        if self.greedy:
            return ops.argmax(logits).data
        return ops.sample(
            logits, self.temperature, self.top_k, self.top_p, self.min_p, state
        ).data  # fmt: skip

    # --- several positions at once ---
    def after_each(self, logits: Tensor, drafts: Any) -> Any:
        """Return the token (B, T) that each of T positions would be followed by, on the device.

        ``logits`` (B, T, V); ``drafts`` (B, T - 1) on the device is what stands at all positions but the
        first, -1 for nothing. Nothing is remembered before ``keep`` says what came true. On a host
        the positions after the last draft that can still come true are left at -1.
        """
        batch, count, classes = logits.shape
        with nvtx.span("sample", "op", batch * count):
            if self.greedy and self.seen is None:
                flat = logits.reshape(batch * count, classes)
                return ops.argmax(flat).data.reshape(batch, count)
            return self._one_by_one(logits, drafts)

    def _one_by_one(self, logits: Tensor, drafts: Any) -> Any:
        seen = self.seen
        before = None if seen is None else seen.copy()
        host, chosen = self.place.kind == "cpu", self.place.zeros(logits.shape[:2], "int64") - 1
        possible, state = numpy.ones(self.batch, bool), self.state
        for t in range(logits.shape[1]):
            chosen[:, t] = self._choose(logits[:, t], state)
            if t == drafts.shape[1]:
                break
            if host:
                possible &= chosen[:, t] == drafts[:, t]
                if not possible.any():
                    break
            self.see(drafts[:, t : t + 1])
            state = self._later(state, 1)
        if seen is not None:
            seen[...] = before
        return chosen

    def _later(self, state: Any, draws: Any) -> Any:
        """``state`` so many draws later: one number for all, or one a row."""
        ticks = numpy.zeros((*numpy.shape(draws), 2), "uint64")
        ticks[..., 1] = draws
        return state + self.place.asarray(
            ticks if self.state.ndim == 2 else ticks.reshape(-1, 2)[0]
        )

    def keep(self, tokens: Any) -> None:
        """Remember what came true of ``after_each``: ``tokens`` (B, T) on the host, -1 after those of
        a row. A row without any stays as it is."""
        counts = (tokens >= 0).sum(axis=1)
        self.see(self.place.asarray(tokens))
        self.state[...] = self._later(self.state, counts)
        last = numpy.take_along_axis(tokens, numpy.maximum(counts - 1, 0)[:, None], axis=1)
        # A row without any has nothing to feed any more.
        self.ids[...] = self.place.asarray(numpy.maximum(last, 0))

    def follow(self, other: "Sampler") -> None:
        """Stand where ``other`` does: the next draws, and what has been seen, are its."""
        self.state[...] = self.place.asarray(other.state)
        if self.seen is not None:
            self.seen[...] = self.place.asarray(other.seen)

    def fork(self, place: Device) -> "Sampler":
        """A sampler on ``place`` with the same parameters, to ``follow`` this one."""
        return Sampler(
            self.sampling, self.batch, self.vocab_size, place, 0, self.state.ndim == 2
        )  # fmt: skip
