"""Memory as NumPy itself reports it: what its arrays take, at the end and at the worst moment of each phase."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy

from ..config import TransformerConfig
from ..core.tensor import Tensor, no_grad
from ..core.transformers import Transformer
from ..generation.cache import Cache
from ..generation.prefill import prefill
from ..training import SGD, AdamW, CrossEntropyLoss, clip_grad_norm
from .memory import PREFILL_CHUNK, InferenceMemory, TrainingMemory

# The domain in which NumPy reports its arrays to tracemalloc (NumPy's documentation of tracemalloc).
NUMPY_DOMAIN = 389047


def numpy_bytes() -> int:
    """Bytes of all arrays that were made since tracing began and are alive."""
    only = tracemalloc.DomainFilter(inclusive=True, domain=NUMPY_DOMAIN)
    traces = tracemalloc.take_snapshot().filter_traces([only]).traces
    return sum(trace.size for trace in traces)


@dataclass
class Traced:
    """``live`` bytes of arrays at the end of a block, and the ``peak`` in it."""

    live: int = 0
    peak: int = 0


@contextmanager
def traced() -> Iterator[Traced]:
    """Trace a block. What Python's own objects take at its end is not counted."""
    found = Traced()
    tracemalloc.reset_peak()
    yield found
    now, peak = tracemalloc.get_traced_memory()
    found.live = numpy_bytes()
    found.peak = peak - (now - found.live)


def measure_training_memory(
    config: TransformerConfig, batch: int, tokens: int, dtype: str = "float32",
    optimizer: str = "adamw", recompute: bool = False,
) -> TrainingMemory:  # fmt: skip
    """What ``memory.training_memory`` predicts, measured on the CPU in the steps of a new model behind its first."""
    began = tracemalloc.is_tracing()
    tracemalloc.start(1)
    try:
        return _measure(config, batch, tokens, dtype, optimizer, recompute)
    finally:
        if not began:
            tracemalloc.stop()


def _loss(model: Transformer, ids: Any, loss_of: CrossEntropyLoss) -> Tensor:
    """The loss of a text, about itself if there is an encoder; of a model without a head its states."""
    if not model.config.head:
        return model(ids[:, :-1])
    source = {} if model.encoder is None else {"source": ids[:, :-1]}
    return loss_of(model(ids[:, :-1], **source), ids[:, 1:])


def _measure(
    config: TransformerConfig, batch: int, tokens: int, dtype: str, optimizer: str, recompute: bool
) -> TrainingMemory:
    before = numpy_bytes()
    model = Transformer.from_config(config, device="cpu", dtype=dtype, seed=0)
    model.recompute = recompute
    stored = sum(p.data.nbytes for p in model.parameters())
    chosen: Any = AdamW(model.parameters()) if optimizer == "adamw" else SGD(model.parameters(), 0.1, 0.9)  # fmt: skip
    state = sum(x.nbytes for slots in chosen.state.values() for x in slots.values())
    random = numpy.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (batch, tokens + 1))
    loss_of = CrossEntropyLoss()
    given = sum(x.nbytes for x in (ids,))
    peaks: list[tuple[int, ...]] = []
    for _ in range(3):
        with traced() as forward:
            loss = _loss(model, ids, loss_of)
        with traced() as backward:
            loss.backward(None if not loss.shape else Tensor(numpy.ones(loss.shape, loss.dtype)))
        gradients = sum(p.grad.data.nbytes for p in model.parameters() if p.grad is not None)
        with traced() as update:
            norm = clip_grad_norm(model.parameters(), 1.0)
            chosen.step(norm[1])
        chosen.zero_grad()
        del loss, norm
        peaks.append((forward.peak, backward.peak, update.peak))
    # The first step makes the tables. What Python makes for itself behind the peak of a later one (a table of its own
    # that has become too small) would be taken for less in arrays: it does not happen twice.
    most = [max(step[i] for step in peaks[1:]) for i in range(3)]
    rest = numpy_bytes() - before - given
    offset = before + given
    return TrainingMemory(
        stored, gradients, state, rest - stored - state, forward.live - offset - rest,
        *(peak - offset for peak in most),
    )  # fmt: skip


def measure_inference_memory(
    config: TransformerConfig, batch: int, context: int, dtype: str = "float32", cache_dtype: str | None = None,
) -> InferenceMemory:  # fmt: skip
    """What ``memory.inference_memory`` predicts, measured on the CPU: what feeding the prompt's last part takes."""
    began = tracemalloc.is_tracing()
    tracemalloc.start(1)
    try:
        return _measure_prompt(config, batch, context, dtype, cache_dtype)
    finally:
        if not began:
            tracemalloc.stop()


def _measure_prompt(
    config: TransformerConfig, batch: int, context: int, dtype: str, cache_dtype: str | None
) -> InferenceMemory:
    rows = numpy.random.default_rng(0).integers(0, config.vocab_size, (batch, context))
    begun, part = numpy_bytes(), min(context, PREFILL_CHUNK)
    model: Any = Transformer.from_config(config, device="cpu", dtype=dtype, seed=0).eval()
    cache = Cache.for_model(model, batch, context, cache_dtype)
    with no_grad():
        if part < context:
            prefill(model, rows[:, :-part], cache)
        prefill(model, rows[:, -part:], cache)  # makes the tables
        cache.rollback(part)
        with traced() as found:
            prefill(model, rows[:, -part:], cache)
    stored = sum(p.data.nbytes for p in model.parameters())
    fixed: Any = () if model.rotary is None else model.rotary.tables(context)
    if config.position == "sinusoidal":
        fixed = (model.pos_encoding.pe.data,)
    tables = sum(table.nbytes for table in fixed)
    rest = begun + stored + cache.nbytes + tables
    return InferenceMemory(stored, cache.nbytes, tables, found.peak - rest)
