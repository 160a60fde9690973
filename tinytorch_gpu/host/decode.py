"""Attention of one new token through the cache, prepared once and repeated at each position."""

from typing import Any

import numpy

from ..ops import cached_attention
from .attention import accepts_cached, cached


def _plan(
    out: Any, packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    """One token of one sequence that sees all keys; None for anything else."""
    batch, count, total, width = packed.shape
    if batch != 1 or count != 1 or isinstance(starts, int) or window is not None:
        return None
    if keys.dtype != packed.dtype:
        return None
    kv_heads, half = (total - heads) // 2, width // 2
    groups = heads // kv_heads
    turned = packed if cos is None else numpy.empty_like(packed)
    halves = packed.reshape(total, 2, half)[: heads + kv_heads]
    place = turned.reshape(total, 2, half)[: heads + kv_heads]
    other = numpy.empty_like(place)
    parts = turned[0, 0]
    queries = numpy.empty((kv_heads, groups, 1, width), packed.dtype)
    mixed = out.reshape(kv_heads, groups, 1, width)
    new_keys, new_values = parts[heads : heads + kv_heads], parts[heads + kv_heads :]
    all_keys = keys[0].transpose(1, 2, 0)[:, None]
    all_values = values[0].transpose(1, 0, 2)[:, None]
    factor = packed.dtype.type(width**-0.5 if scale is None else scale)
    asked = parts[:heads].reshape(queries.shape)

    def turn(position: int) -> None:
        numpy.multiply(halves, cos[position], out=place)
        numpy.multiply(halves[:, ::-1], sin[position], out=other)
        place[:, 0] -= other[:, 0]
        place[:, 1] += other[:, 1]

    def run() -> None:
        position = int(starts[0])
        if cos is not None:
            turn(position)
            new_values[...] = packed[0, 0, heads + kv_heads :]
        keys[0, position], values[0, position] = new_keys, new_values
        numpy.multiply(asked, factor, out=queries)
        scores = numpy.matmul(queries, all_keys[..., : position + 1])
        scores -= numpy.maximum.reduce(scores, axis=-1, keepdims=True)
        numpy.exp(scores, out=scores)
        numpy.matmul(scores, all_values[:, :, : position + 1], out=mixed)
        numpy.divide(mixed, numpy.add.reduce(scores, axis=-1, keepdims=True), out=mixed)

    return run


cached_attention.maker("cpu", cached, accepts=accepts_cached, plan=_plan)
