"""Attention in blocks of queries: the score matrix exists one block at a time.

Each row of the batch is its own problem, with its own length, so a batch of different lengths does
no work for the padding; keys later than a block's last query are never looked at.
"""

from typing import Any

import numpy

from ..core.tensor import grad_enabled
from ..ops import attention
from ..special import append_rows
from .buffers import plain
from .rotary import turn

# Queries per block: enough rows for the matrix product, scores that stay in cache.
QUERIES = 128


def _accepts(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, dropout: float = 0.0, **options: Any,
) -> bool:  # fmt: skip
    return plain(q, k, v) and mask is None and bias is None and not dropout


def _forward(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    batch, rows, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    if batch == rows == 1 and lengths is None and window is None and starts is None:
        factor = width**-0.5 if scale is None else scale
        return _one_query(q, k, v, factor, (q, k, v, mask, bias, lengths, starts, state))
    out = numpy.empty((batch, rows, heads, v.shape[3]), q.dtype)
    lse = numpy.empty((batch, heads, rows, 1), q.dtype)
    grouped = (batch, rows, kv_heads, heads // kv_heads)
    # (B, K, G, T, D): the query heads of one key head beside each other.
    queries = (q * (width**-0.5 if scale is None else scale)).reshape(*grouped, width)
    queries = queries.transpose(0, 2, 3, 1, 4)
    mixed = out.reshape(*grouped, -1).transpose(0, 2, 3, 1, 4)
    sums = lse.reshape(batch, kv_heads, heads // kv_heads, rows, 1)
    transposed, values = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    for row in range(batch):
        length = keys if lengths is None else int(lengths[row])
        start = length - rows if starts is None else int(starts[row])
        for first in range(0, rows, QUERIES):
            part = slice(first, min(first + QUERIES, rows))
            low, high = _span(start + first, start + part.stop, length, causal, window)
            seen = None
            if (causal and start + first + 1 < high) or window is not None:
                seen = _visible(start + first, part, low, high, causal, window)
            _block(
                queries[row, :, :, part], transposed[row, :, None, :, low:high],
                values[row, :, None, low:high], seen, mixed[row, :, :, part], sums[row, :, :, part],
            )  # fmt: skip
    return out, ((q, k, v, mask, bias, lengths, starts, state), out, lse)


def _one_query(q: Any, k: Any, v: Any, scale: float, inputs: Any) -> Any:
    """One new token of one sequence, which sees all keys: no blocks, no masks."""
    _, _, heads, width = q.shape
    kv_heads = k.shape[2]
    # One row at a time: a matrix of the few query heads of a key head is a worse shape for the BLAS.
    queries = (q * scale).reshape(kv_heads, heads // kv_heads, 1, width)
    scores = numpy.matmul(queries, k[0].transpose(1, 2, 0)[:, None])
    top = numpy.maximum.reduce(scores, axis=-1, keepdims=True)
    scores -= top
    numpy.exp(scores, out=scores)
    total = numpy.add.reduce(scores, axis=-1, keepdims=True)
    out = numpy.matmul(scores, v[0].transpose(1, 0, 2)[:, None])
    out /= total
    out = out.reshape(1, 1, heads, v.shape[3])
    if not grad_enabled():
        return out, None
    top += numpy.log(total)
    return out, (inputs, out, top.reshape(1, heads, 1, 1))


def cached(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    window: int | None = None,
) -> Any:  # fmt: skip
    """The forward of ``cached_attention``."""
    kv_heads = (packed.shape[2] - heads) // 2
    turned = heads + kv_heads
    if cos is not None:
        packed, _ = turn(packed, cos, sin, positions, heads=turned)
    append_rows(keys, packed[:, :, heads:turned], starts)
    append_rows(values, packed[:, :, turned:], starts)
    firsts = None if isinstance(starts, int) else starts
    out, _ = _forward(
        packed[:, :, :heads], keys[:, :stop], values[:, :stop], None, None, lengths, firsts,
        causal=causal, window=window,
    )  # fmt: skip
    return out.reshape(*out.shape[:2], -1)


def accepts_cached(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, **options: Any,
) -> bool:  # fmt: skip
    """Whether ``cached`` takes these arguments."""
    return plain(packed, keys, values) and (cos is None or 2 * cos.shape[1] == packed.shape[3])


def _span(first: int, stop: int, length: int, causal: bool, window: int | None) -> tuple[int, int]:
    """The keys that some query from position ``first`` to before ``stop`` may look at."""
    high = max(0, min(length, stop) if causal else length)
    low = 0 if window is None else max(0, first - window + 1)
    return min(low, high), high


def _visible(
    position: int, part: slice, low: int, high: int, causal: bool, window: int | None
) -> Any:
    """Which keys low..high each query of the block may look at, (T, S) boolean."""
    query = numpy.arange(position, position + part.stop - part.start)[:, None]
    key = numpy.arange(low, high)[None, :]
    seen = key <= query if causal else numpy.ones((len(query), high - low), bool)
    return seen if window is None else seen & (query - key < window)


def _block(q: Any, k: Any, v: Any, seen: Any, out: Any, lse: Any) -> None:
    """out = softmax(q k) v for one block: (K, G, T, D), (K, 1, D, S), (K, 1, S, D)."""
    if k.shape[-1] == 0:
        out[...], lse[...] = 0, numpy.inf
        return
    scores = numpy.matmul(q, k)
    if seen is not None:
        scores[..., ~seen] = -numpy.inf
    top = scores.max(axis=-1, keepdims=True)
    if seen is not None:
        top[~numpy.isfinite(top)] = 0
    scores -= top
    numpy.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    lse[...] = top
    if seen is not None:
        blind = total == 0
        total[blind] = 1
        lse[blind] = numpy.inf
    # The small result is divided, not the big weights.
    numpy.divide(numpy.matmul(scores, v), total, out=out)
    lse += numpy.log(total)


attention.maker("cpu", _forward, accepts=_accepts)
