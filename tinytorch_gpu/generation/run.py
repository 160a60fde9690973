"""One generation under way: a prefill of the prompts, then steps of a token through the cache."""

import math
from collections.abc import Iterator
from typing import Any

import numpy

from .. import nvtx
from ..backend import DEVICES
from ..core.tensor import no_grad
from .cache import Cache
from .capture import capture
from .prefill import padded, prefill
from .prompts import Step
from .sampler import Sampler


class Run:
    """The prompts (host arrays), the cache that they and their answers go through, and how far it is."""

    def __init__(
        self, model: Any, prompts: list[Any], count: int, sampler: Sampler, stop: Any, pad_id: int,
        cache: Cache | None, cache_dtype: Any = None,
    ):  # fmt: skip
        self.model, self.prompts, self.sampler = model, prompts, sampler
        self.stop, self.pad_id = stop, pad_id
        self.lengths = numpy.array([len(prompt) for prompt in prompts])
        room = model.config.max_seq_length
        self.cache: Any = cache
        self.keeps, self.cache_dtype = cache is not None, cache_dtype
        held = numpy.zeros_like(self.lengths) if cache is None else cache.lengths
        if cache is not None and cache.batch != len(prompts):
            raise ValueError(f"the cache is for a batch of {cache.batch}, not {len(prompts)}")
        if cache is not None:
            room = min(room, cache.capacity)
        self.before = held + self.lengths
        longest = int(self.before.max())
        if longest > room:
            raise ValueError(f"{longest} prompt tokens exceed the context of {room}")
        # Rows are stepped together, so the longest one bounds the steps of the others' cache.
        self.left = numpy.minimum(count, room - self.before)
        self.capacity = min(room, longest + count)
        self.given = numpy.zeros_like(self.lengths)  # tokens of each row that were handed out

    def steps(self) -> Iterator[Step]:
        """Yield the steps; the model is in evaluation mode meanwhile."""
        if not self.left.any():
            return
        training, self.model.training = self.model.training, False
        if training:
            self.model.eval()
        try:
            with self.model.device.active():
                yield from self._steps()
        finally:
            self.model.train(training)
            self._settle()

    def _steps(self) -> Iterator[Step]:
        if self.cache is None:
            self.cache = Cache.for_model(
                self.model, len(self.prompts), self.capacity, self.cache_dtype
            )
        with no_grad(), nvtx.span("prefill", "phase", int(self.lengths.sum())):
            self.sampler.see(self.model.device.asarray(padded(self.prompts, -1)))
            logits = prefill(self.model, self.prompts, self.cache)
        with no_grad():
            self.sampler(logits)
        self.step = capture(self.model, len(self.prompts), self.cache, self.sampler)
        self.step.logits = logits
        yield from self._decode()

    def _decode(self) -> Iterator[Step]:
        """Yield a step for each token of each row. On a GPU the next one is under way before this
        one's tokens are read, so the GPU does not wait for the host."""
        reader, stops = _reader(self.model.device, self.sampler.ids), frozenset(self.stop.tolist())
        ahead = self.model.device.kind in DEVICES
        finished, count = self.left == 0, 0
        while True:
            reader.start(self.sampler.ids)
            count += 1
            early = ahead and bool((self.left > count).any())
            if early:
                self._next()
            tokens = numpy.where(finished, self.pad_id, reader.wait()[:, 0]).astype(numpy.int64)
            check_finite(self.step.logits.data, tokens, ~finished)
            self.given += ~finished
            stopped = [
                token in stops for token in tokens.tolist()
            ]  # numpy.isin takes ten times as long
            finished = finished | stopped | (self.left <= count)
            yield Step(tokens, finished)
            if finished.all():
                return
            if not early:
                self._next()

    def _next(self) -> None:
        """Feed each row its last token, and choose the next: a finished row goes on unseen."""
        # One that has filled its cache writes the last place again and again.
        full = self.cache.lengths >= self.cache.capacity
        if full.any():
            self.cache.rollback(full.astype(numpy.int64))
        self.step()

    def _settle(self) -> None:
        """Leave in a given cache, of each row, all tokens but the last one handed out."""
        if self.keeps and self.given.any():
            wanted = self.before + numpy.maximum(self.given - 1, 0)
            self.cache.rollback(numpy.maximum(self.cache.lengths - wanted, 0))


def _reader(place: Any, ids: Any) -> Any:
    if place.kind not in DEVICES:
        return _Here()
    from ..cuda.copies import reader

    return reader(place, ids)


class _Here:
    """Reads ids that are on the host already."""

    def start(self, ids: Any) -> None:
        self.ids = ids.copy()

    def wait(self) -> Any:
        return self.ids


def check_finite(logits: Any, tokens: Any, alive: Any) -> None:
    """Refuse to go on from broken logits, where looking costs no wait for a device."""
    if type(logits) is not numpy.ndarray:
        return
    for row, token in enumerate(tokens.tolist()):
        if alive[row] and not math.isfinite(logits[row, token]):
            raise ValueError("the model computed NaN or infinite logits: its weights are broken")
