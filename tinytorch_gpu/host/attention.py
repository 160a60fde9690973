"""Attention in blocks of queries: the score matrix exists one block at a time, backwards too.

Rows of the batch that follow each other and have one length are worked on together, others each as
its own problem, so a batch of different lengths does no work for the padding; keys that no query of
a block may see are never looked at. The backward makes the weights anew from the log-sum-exp of each
row (FlashAttention, Dao et al. 2022), from the same products of the same shapes, so that they are the
forward's to the last bit: where one score is far above the rest, its gradient is a difference of equal
numbers.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from ..backend import is_half, narrow, widen
from ..core.tensor import grad_enabled
from ..ops import attention
from ..quantized.cache import EightBit
from ..special import append_rows
from .buffers import plain
from .rotary import turn
from .threads import share, split

# Queries per block: enough rows for the matrix product, and little of a causal block is hidden.
QUERIES = 128
# Scores per block, the heads and rows together: 1 MB of float32. One head may need more by itself.
SCORES = 1 << 18


class _Block(NamedTuple):
    """Queries and key heads of some rows of the batch, and the keys that some of them may see."""

    rows: slice
    queries: slice
    heads: slice
    keys: slice
    position: int  # of the first query


class _Scores:
    """The scores of one call, block by block.

    The query heads of one key head are stacked, so that a product is (K, G T, D) by (K, D, S), for each
    of the R rows of a block.
    """

    def __init__(self, inputs: Any, causal: bool, scale: float | None, window: int | None):
        self.q, self.k, _, _, _, lengths, starts, _ = inputs
        batch, rows, heads, width = self.q.shape
        keys, self.kv_heads = self.k.shape[1:3]
        self.groups = heads // self.kv_heads
        self.causal, self.window = causal, window
        self.scale = self.q.dtype.type(width**-0.5 if scale is None else scale)
        # Scaled queries are fewer than scores, and by a power of two exact; any other scale would
        # round each of them, and large scores would not be the reference's.
        self.exact = abs(math.frexp(self.scale)[0]) == 0.5
        self.lengths = [keys] * batch if lengths is None else _per_row(lengths, batch)
        self.starts = (
            [n - rows for n in self.lengths] if starts is None else _per_row(starts, batch)
        )
        self._scratch: dict[str, Any] = {}

    def blocks(self, part: slice) -> Iterator[_Block]:
        """All queries of rows of the batch, a block at a time; of a block that sees nothing the keys
        are empty."""
        rows, keys = self.q.shape[1], self.k.shape[1]
        for (length, start), same in self._runs(part):
            for first in range(0, rows, QUERIES):
                queries = slice(first, min(first + QUERIES, rows))
                high = max(0, min(length, keys, start + queries.stop if self.causal else keys))
                low = 0 if self.window is None else max(0, start + first - self.window + 1)
                span = slice(min(low, high), high)
                each = self.groups * (queries.stop - first) * max(1, high - span.start)
                for part, heads in self._shares(same, max(1, SCORES // each)):
                    yield _Block(part, queries, heads, span, start + first)

    def _runs(self, part: slice) -> Iterator[tuple[tuple[int, int], slice]]:
        """Rows of the batch that follow each other with one (length, start)."""
        first = part.start
        for key, run in itertools.groupby(zip(self.lengths[part], self.starts[part], strict=True)):
            stop = first + len(list(run))
            yield key, slice(first, stop)
            first = stop

    def _shares(self, rows: slice, count: int) -> Iterator[tuple[slice, slice]]:
        """Rows and key heads, at most ``count`` heads together: several rows or a part of one."""
        each = max(1, count // self.kv_heads)
        for first in range(rows.start, rows.stop, each):
            for head in range(0, self.kv_heads, count):
                heads = slice(head, min(head + count, self.kv_heads))
                yield slice(first, min(first + each, rows.stop)), heads

    def buffer(self, name: str, *shape: int) -> Any:
        """An array to write to, of the same memory each time."""
        size = math.prod(shape)
        held = self._scratch.get(name)
        if held is None or held.size < size:
            held = self._scratch[name] = numpy.empty(size, self.q.dtype)
        return held[:size].reshape(shape)

    def by_head(self, x: Any, block: _Block) -> Any:
        """The view (R, K, G, T, ...) of a block's queries in ``x`` (B, T, H, ...)."""
        part = x[block.rows, block.queries]
        apart = part.reshape(*part.shape[:2], self.kv_heads, self.groups, part.shape[3])
        return apart[:, :, block.heads].transpose(0, 2, 3, 1, 4)

    def stacked(self, x: Any, block: _Block, name: str, factor: Any = None) -> Any:
        """A block's queries in ``x`` (B, T, H, D), times ``factor``, as (R, K, G T, D)."""
        view = self.by_head(x, block)
        if factor is None and self.groups == 1 and _for_blas(view):
            return view[:, :, 0]
        out = self.buffer(name, *view.shape)
        if factor is None:
            numpy.copyto(out, view)
        else:
            numpy.multiply(view, factor, out=out)
        return out.reshape(*out.shape[:2], -1, out.shape[4])

    def of(self, block: _Block) -> tuple[Any, Any]:
        """The queries (R, K, G T, D) and their scores (R, K, G, T, S), -inf where hidden."""
        queries = self.stacked(self.q, block, "queries", self.scale if self.exact else None)
        known = self.k[block.rows, block.keys, block.heads].transpose(0, 2, 3, 1)
        rows = block.queries.stop - block.queries.start
        shape = (*queries.shape[:2], self.groups, rows, known.shape[3])
        scores = self.buffer("scores", *shape)
        if rows == 1:
            # Few query heads of a key head are a worse shape for the BLAS than each alone.
            numpy.matmul(queries[:, :, :, None], known[:, :, None], out=scores)
        else:
            numpy.matmul(queries, known, out=scores.reshape(*shape[:2], -1, shape[4]))
        if not self.exact:
            scores *= self.scale
        self._hide(scores, block)
        return queries, scores

    def _hide(self, scores: Any, block: _Block) -> None:
        """Later keys and those a window away, looked for only where there can be any."""
        low, high, position = block.keys.start, block.keys.stop, block.position
        causal = self.causal and position + 1 < high
        if not causal and self.window is None:
            return
        query = numpy.arange(position, position + scores.shape[3])[:, None]
        if causal:
            first = max(low, position + 1)
            later = numpy.arange(first, high) > query
            numpy.copyto(scores[..., first - low :], -numpy.inf, where=later)
        if self.window is not None:
            stop = min(high, position + scores.shape[3] - self.window)
            far = query - numpy.arange(low, stop) >= self.window
            numpy.copyto(scores[..., : max(0, stop - low)], -numpy.inf, where=far)


def _for_blas(view: Any) -> bool:
    """Whether the BLAS takes the last two axes as they lie in memory."""
    return bool(
        view.strides[-1] == view.itemsize and view.strides[-2] >= view.shape[-1] * view.itemsize
    )


def _per_row(numbers: Any, batch: int) -> list[int]:
    """Lengths or starts on the host, of all rows; one number is that of all."""
    found = numbers.reshape(-1).tolist()
    return found * batch if len(found) == 1 else found


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
    inputs = (q, k, v, mask, bias, lengths, starts, state)
    batch, rows, heads, width = q.shape
    if batch == rows == 1 and lengths is None and window is None and starts is None:
        return _one_query(q, k, v, width**-0.5 if scale is None else scale, inputs)
    out = numpy.empty((batch, rows, heads, v.shape[3]), q.dtype)
    lse = numpy.empty((batch, heads, rows, 1), q.dtype)
    by_token = lse.transpose(0, 2, 1, 3)

    def one(part: slice) -> None:
        scores = _Scores(inputs, causal, scale, window)
        for block in scores.blocks(part):
            mixed, sums = scores.by_head(out, block), scores.by_head(by_token, block)
            if block.keys.start == block.keys.stop:
                mixed[...], sums[...] = 0, numpy.inf
            else:
                values = v[block.rows, block.keys, block.heads].transpose(0, 2, 1, 3)
                _attend(scores.of(block)[1], values, mixed, sums)

    share(one, batch_parts(q, k))
    return out, (inputs, out, lse)


def batch_parts(q: Any, k: Any) -> list[slice]:
    """Rows of the batch for threads to share, where they have enough scores."""
    batch, rows, heads, _ = q.shape
    return split(batch, batch * rows * heads * k.shape[1] >> 16)


def _attend(scores: Any, values: Any, out: Any, lse: Any) -> None:
    """out = softmax(scores) values for one block: (R, K, G, T, S), (R, K, S, D)."""
    *outer, groups, rows, keys = scores.shape
    top = numpy.maximum.reduce(scores, axis=-1, keepdims=True)
    top[~numpy.isfinite(top)] = 0
    scores -= top
    numpy.exp(scores, out=scores)
    if rows == 1:
        total = numpy.add.reduce(scores, axis=-1, keepdims=True)
        mixed = numpy.matmul(scores, values[:, :, None])
    else:  # a sum is several times slower than a product with ones
        total = numpy.matmul(scores.reshape(-1, keys), numpy.ones((keys, 1), scores.dtype))
        total = total.reshape(top.shape)
        mixed = numpy.matmul(scores.reshape(*outer, -1, keys), values)
        mixed = mixed.reshape(*outer, groups, rows, -1)
    # A query that sees nothing saves +inf, so that the backward's exp(score - lse) is 0 there; one that
    # sees a NaN too: its weights are NaN where the scores are.
    blind = ~(total > 0)
    if blind.any():
        total[blind], top[blind] = 1, numpy.inf
    # The small result is divided, not the big weights.
    numpy.divide(mixed, total, out=out)
    numpy.add(top, numpy.log(total), out=lse)


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


def _backward(
    residuals: Any, dout: Any, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    inputs, _, lse = residuals
    q, k, v, *_ = inputs
    gradients, by_token = _side_by_side(q, k, v), lse.transpose(0, 2, 1, 3)

    def one(part: slice) -> None:
        scores = _Scores(inputs, causal, scale, window)
        for block in scores.blocks(part):
            if block.keys.start < block.keys.stop:
                _go_back(scores, block, v, by_token, dout, *gradients)

    share(one, batch_parts(q, k))
    return *gradients, None, None, None, None, None


def _go_back(
    scores: _Scores, block: _Block, v: Any, lse: Any, dout: Any, dq: Any, dk: Any, dv: Any
) -> None:
    """Write the gradient of a block's queries, and add to those of the keys and values it sees."""
    queries, weights = scores.of(block)
    weights -= scores.by_head(lse, block)
    numpy.exp(weights, out=weights)
    missing = _missing(weights)
    dy = scores.stacked(dout, block, "dout", missing)
    weights, missing = (x.reshape(*x.shape[:2], -1, x.shape[4]) for x in (weights, missing))
    known, values, dknown, dvalues = (
        x[block.rows, block.keys, block.heads].transpose(0, 2, 1, 3) for x in (scores.k, v, dk, dv)
    )
    _add_product(weights.swapaxes(2, 3), dy, dvalues, block)
    dscores = scores.buffer("dscores", *weights.shape)
    numpy.matmul(dy, values.swapaxes(2, 3), out=dscores)
    # The mean of these by the weights: where one weight is nearly 1 it must cancel its own.
    dscores -= numpy.vecdot(dscores, weights)[..., None] * missing
    dscores *= weights
    if not scores.exact:  # else the queries are scaled
        dscores *= scores.scale
    _add_product(dscores.swapaxes(2, 3), queries, dknown, block)
    own = scores.by_head(dq, block)
    if scores.groups == 1:
        numpy.matmul(dscores, known, out=own[:, :, 0])
    else:
        own[...] = numpy.matmul(dscores, known).reshape(own.shape)
    if scores.exact:
        own *= scores.scale


def _side_by_side(q: Any, k: Any, v: Any) -> list[Any]:
    """Zeros like each: where they fit, parts of one array, as the heads were before they were split."""
    if not q.shape[1::2] == k.shape[1::2] == v.shape[1::2]:
        return [numpy.zeros(x.shape, x.dtype) for x in (q, k, v)]
    heads, more = q.shape[2], k.shape[2]
    packed = numpy.zeros((*q.shape[:2], heads + 2 * more, q.shape[3]), q.dtype)
    return [packed[:, :, :heads], packed[:, :, heads : heads + more], packed[:, :, heads + more :]]


def _add_product(left: Any, right: Any, total: Any, block: _Block) -> None:
    """total += left @ right, where the first block of queries finds zeros."""
    if block.queries.start == 0:
        numpy.matmul(left, right, out=total)
    else:
        total += numpy.matmul(left, right)


def _missing(weights: Any) -> Any:
    """What the rows of weights (..., S) must be multiplied by to add up to 1.

    A log-sum-exp far from 0 has been rounded by much, and with it all weights of its row alike. Rows
    that see nothing, or a NaN, stay as they are.
    """
    keys = weights.shape[-1]
    total = numpy.matmul(weights.reshape(-1, keys), numpy.ones((keys, 1), weights.dtype))
    total[~(total > 0)] = 1
    return numpy.reciprocal(total, out=total).reshape(*weights.shape[:-1], 1)


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
    keys, values = (narrow(widen(cache[:, :stop]), packed.dtype) for cache in (keys, values))
    out, _ = _forward(
        packed[:, :, :heads], keys, values, None, None, lengths, firsts,
        causal=causal, window=window,
    )  # fmt: skip
    return out.reshape(*out.shape[:2], -1)


def accepts_cached(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, **options: Any,
) -> bool:  # fmt: skip
    """Whether ``cached`` takes these arguments."""
    narrower = isinstance(keys, EightBit) or (is_half(keys) and is_half(values))
    held = plain(packed) and (narrower or plain(packed, keys, values))
    return held and (cos is None or 2 * cos.shape[1] == packed.shape[3])


attention.maker("cpu", _forward, _backward, accepts=_accepts)
