"""The generation loop: one prefill of the prompt, then single-token steps through the cache."""

import operator
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy

from .. import nvtx
from ..backend import namespace, to_numpy
from ..core.embeddings import check_ids
from ..core.tensor import Tensor, no_grad, wrap
from .cache import Cache
from .capture import CapturedStep, can_capture, capture
from .sampler import Sampler, Sampling

# Longer prompts are prefilled in parts, so that the workspace does not grow with them.
PREFILL_CHUNK = 512


class Step(NamedTuple):
    """One token for each row: ``tokens`` (B,) and whether each row has ``finished``, on the host.

    A row that finished earlier gets the pad id.
    """

    tokens: numpy.ndarray
    finished: numpy.ndarray


def generate(
    model: Any,
    input_ids: Any,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    stream: bool = False,
    pad_id: int = 0,
    cache: Cache | None = None,
    cache_dtype: Any = None,
) -> Any:
    """Continue prompts with up to ``max_new_tokens`` tokens each.

    ``input_ids`` (T,) or (B, T) gives a Tensor (B, T + n); a list of prompts of different lengths
    gives a list of 1-D Tensors. A row stops at one of ``stop_tokens`` (kept) or at
    ``max_seq_length``; rows that stop early are filled with ``pad_id``. ``stream=True`` returns an
    iterator of ``Step`` instead. ``temperature`` 0 is greedy; ``top_k``, ``top_p``, ``min_p`` and
    ``repetition_penalty`` as in ``Sampling``; a ``seed`` makes it repeatable on a device. With a
    ``cache`` the prompt continues what it holds, and the cache stays usable: it has all tokens but
    the last one generated, and pad tokens after a row that stopped before the others; else
    ``cache_dtype`` ("float16") says how keys and values are kept. Bad arguments are a ValueError at
    once.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Real):
        raise ValueError(f"max_new_tokens must be a whole number, not {max_new_tokens!r}")
    if max_new_tokens < 0 or max_new_tokens % 1:
        raise ValueError(f"max_new_tokens must be a whole number from 0 on, not {max_new_tokens}")
    if not hasattr(pad_id, "__index__"):
        raise ValueError(f"pad_id must be a token id, not {pad_id!r}")
    prompts, ragged = _prompts(input_ids, model.config.vocab_size)
    sampler = Sampler(sampling, len(prompts), model.config.vocab_size, model.device, seed)
    run = _Run(
        model, prompts, int(max_new_tokens), sampler, stop_tokens, pad_id, cache, cache_dtype
    )
    steps = run.steps()
    if stream:
        return steps
    return _collect(prompts, list(steps), ragged, model.device)


def _prompts(input_ids: Any, vocab_size: int) -> tuple[list[Any], bool]:
    """The prompts as host arrays (T,), and whether they came as a list of different lengths."""
    if isinstance(input_ids, list | tuple) and len({_length(row) for row in input_ids}) > 1:
        rows, ragged = [numpy.asarray(_host(row)) for row in input_ids], True
    else:
        ids = numpy.asarray(_host(input_ids))
        if ids.ndim not in (1, 2):
            raise ValueError(f"prompts must be (T,) or (B, T), not {ids.shape}")
        rows, ragged = list(ids[None] if ids.ndim == 1 else ids), False
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows):
        raise ValueError("a prompt is empty: give at least one token")
    rows = [_whole(row) for row in rows]
    for row in rows:
        check_ids(row, vocab_size)
    return rows, ragged


def _whole(ids: Any) -> Any:
    """Whole numbers that came as floats as integers, as the model takes them."""
    return ids.astype(numpy.int64) if ids.dtype.kind == "f" and not (ids % 1).any() else ids


def _token_ids(stop_tokens: Any) -> Any:
    try:
        found = sorted({operator.index(token) for token in stop_tokens})
    except TypeError:
        raise ValueError(f"stop_tokens must be token ids, not {stop_tokens!r}") from None
    return numpy.asarray(found, dtype=numpy.int64)


def _length(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else -1


def _host(ids: Any) -> Any:
    if isinstance(ids, Tensor):
        ids = ids.data
    if isinstance(ids, list | tuple):
        ids = [_host(item) for item in ids]
    return to_numpy(ids) if hasattr(ids, "dtype") else ids


def _collect(prompts: list[Any], steps: list[Step], ragged: bool, place: Any) -> Any:
    new = numpy.stack([step.tokens for step in steps], axis=1) if steps else None
    if not ragged:
        both = numpy.stack(prompts) if new is None else numpy.hstack((numpy.stack(prompts), new))
        return Tensor(place.asarray(both.astype(numpy.int64)))
    rows = []
    for i, prompt in enumerate(prompts):
        alive = [
            step.tokens[i] for k, step in enumerate(steps) if not k or not steps[k - 1].finished[i]
        ]
        rows.append(Tensor(place.asarray(numpy.concatenate((prompt, alive)).astype(numpy.int64))))
    return rows


class _Run:
    """One generation under way."""

    def __init__(
        self, model: Any, prompts: list[Any], count: int, sampler: Sampler, stop_tokens: Any,
        pad_id: int, cache: Cache | None, cache_dtype: Any = None,
    ):  # fmt: skip
        self.model, self.prompts, self.sampler, self.pad_id = model, prompts, sampler, pad_id
        self.stop = _token_ids(stop_tokens)
        lengths = numpy.array([len(prompt) for prompt in prompts])
        room = model.config.max_seq_length
        self.cache: Any = cache
        self.cache_dtype = cache_dtype
        held = numpy.zeros_like(lengths) if cache is None else cache.lengths
        if cache is not None and cache.batch != len(prompts):
            raise ValueError(f"the cache is for a batch of {cache.batch}, not {len(prompts)}")
        if cache is not None:
            room = min(room, cache.capacity)
        longest = int((held + lengths).max())
        if longest > room:
            raise ValueError(f"{longest} prompt tokens exceed the context of {room}")
        # Rows are stepped together, so the longest one bounds the steps of the others' cache.
        self.left = numpy.minimum(count, room - held - lengths)
        self.capacity = min(room, longest + count)
        self.lengths = lengths
        self.captured: CapturedStep | None = None
        self.tried = False

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

    def _steps(self) -> Iterator[Step]:
        batch = len(self.prompts)
        if self.cache is None:
            self.cache = Cache.for_model(self.model, batch, self.capacity, self.cache_dtype)
        finished, count = self.left == 0, 0
        with no_grad(), nvtx.span("prefill", "phase", int(self.lengths.sum())):
            logits = self._prefill()
        while True:
            with no_grad():
                ids = self.sampler(logits)
            tokens = numpy.where(finished, self.pad_id, to_numpy(ids)).astype(numpy.int64)
            _check_finite(logits, tokens, finished)
            count += 1
            finished = finished | numpy.isin(tokens, self.stop) | (self.left <= count)
            yield Step(tokens, finished)
            if finished.all():
                return
            with no_grad(), nvtx.span("decode", "phase", int(self.cache.lengths.max())):
                logits = self._decode(ids, tokens, finished)

    def _prefill(self) -> Tensor:
        """Feed the prompts; return the logits (B, V) after the last token of each."""
        longest = int(self.lengths.max())
        padded = numpy.full((len(self.prompts), longest), self.prompts[0][0], dtype=numpy.int64)
        marked = numpy.full_like(padded, -1)
        for row, prompt in enumerate(self.prompts):
            padded[row, : len(prompt)] = marked[row, : len(prompt)] = prompt
        place, last = self.model.device, None
        ids = place.asarray(padded)
        self.sampler.see(place.asarray(marked))
        uniform = bool((self.lengths == longest).all())
        for start in range(0, longest, PREFILL_CHUNK):
            part = wrap(ids[:, start : start + PREFILL_CHUNK])
            counts = None if uniform else numpy.clip(self.lengths - start, 0, part.shape[1])
            hidden, _ = self.model.hidden(part, cache=self.cache, counts=counts)
            last = self._last(hidden.data, counts, start, last)
        return self.model.logits(wrap(last))

    def _last(self, hidden: Any, counts: Any, start: int, before: Any) -> Any:
        """The state (B, C) of each row's last token so far, rows that ended earlier kept."""
        if counts is None:
            return hidden[:, -1]
        xp, place = namespace(hidden), self.model.device
        ends = place.asarray(numpy.maximum(counts - 1, 0))
        here = hidden[xp.arange(hidden.shape[0]), ends]
        if before is None:
            return here
        return xp.where(place.asarray(counts > 0)[:, None], here, before)

    def _decode(self, ids: Any, tokens: Any, finished: Any) -> Tensor:
        """Feed one token per row; return the next logits (B, V).

        The ids never leave the device, except that a finished row is fed the pad id.
        """
        if finished.any():
            ids = self.model.device.asarray(numpy.clip(tokens, 0, self.model.config.vocab_size - 1))
        self._make_room(finished)
        if self.captured is not None:
            return self.captured(ids)
        if not self.tried and can_capture(self.model, self.cache):
            self.tried = True
            logits, self.captured = capture(self.model, self.cache, ids, self._step)
            return logits
        return self._step(wrap(ids[:, None]))

    def _step(self, ids: Tensor) -> Tensor:
        """One pass over ids (B, 1): the logits (B, V)."""
        hidden, _ = self.model.hidden(ids, cache=self.cache)
        return self.model.logits(wrap(hidden.data[:, -1]))

    def _make_room(self, finished: Any) -> None:
        """A finished row that has filled its cache writes its last place again and again."""
        for row in numpy.nonzero(finished & (self.cache.lengths >= self.cache.capacity))[0]:
            self.cache.rollback(1, int(row))


def _check_finite(logits: Tensor, tokens: Any, finished: Any) -> None:
    """Refuse to go on from broken logits, where looking costs no wait for a device."""
    if type(logits.data) is not numpy.ndarray:
        return
    rows = numpy.nonzero(~finished)[0]
    if not numpy.isfinite(logits.data[rows, tokens[rows]]).all():
        raise ValueError("the model computed NaN or infinite logits: its weights are broken")
