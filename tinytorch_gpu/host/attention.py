"""Attention in blocks of queries: the score matrix exists one block at a time, backwards too.

The backward makes the weights anew from the log-sum-exp of each
row (FlashAttention, Dao et al. 2022), from the same products of the same shapes, so that they are the
forward's to the last bit: where one score is far above the rest, its gradient is a difference of equal
numbers. Those of short rows are kept instead.
"""

from typing import Any

import numpy

from ..backend import is_half, narrow, widen
from ..core.deferred import ready
from ..core.tensor import grad_enabled
from ..ops import attention
from ..ops.attention import Weights
from ..quantized.cache import EightBit
from ..special import append_rows
from .buffers import plain
from .chain import follow
from .rotary import turn
from .scores import QUERIES, Block, Scores
from .threads import sequence_parts, share, split


def _accepts(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, dropout: float = 0.0, **options: Any,
) -> bool:  # fmt: skip
    return plain(q, k, v) and mask is None and bias is None and not dropout


def _joins(q: Any, k: Any, v: Any, *arrays: Any, **options: Any) -> bool:
    return bool(len(q) > 1)  # one sequence is done in one part, or is one query: at once


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
    # Recorded or not, the result is the same to the last bit.
    short = keeps_weights(q, k)
    kept = _room_for_weights(inputs, window) if short and grad_enabled() else None
    lse = None if short else numpy.empty((batch, heads, rows, 1), q.dtype)

    def one(part: slice) -> None:
        scores = Scores(inputs, causal, scale, window, kept)
        for block in scores.blocks(part):
            mixed = scores.by_head(out, block)
            sums = None if lse is None else scores.by_head(lse.transpose(0, 2, 1, 3), block)
            if block.keys.start < block.keys.stop:
                values = v[block.rows, block.keys, block.heads].transpose(0, 2, 1, 3)
                powers, top = scores.powers(block, scores.queries(block))
                if sums is None:
                    _mix(_normalize(scores.flat(powers)), values, mixed)
                else:
                    _attend(powers, top, values, mixed, sums)
            else:
                mixed[...] = 0
                if sums is not None:
                    sums[...] = numpy.inf

    follow(one, batch_parts(q, k), (out,) if kept is None else (out, kept), rows)
    return out, (inputs, out, Weights(kept) if short else lse)


def keeps_weights(q: Any, k: Any) -> bool:
    """Whether a forward of ``q`` (B, T, H, D) and ``k`` (B, S, K, D) leaves its weights to the backward: where a row
    of them is no longer than the query and the key that it would be made of anew."""
    return q.shape[1] <= QUERIES and k.shape[1] <= 2 * q.shape[3]


def _room_for_weights(inputs: Any, window: int | None) -> Any:
    """An array (B, K, G T, S) for weights that are kept."""
    q, k, *_, lengths, starts, _ = inputs
    batch, rows, heads, _ = q.shape
    keys, kv_heads = k.shape[1:3]
    all_seen = lengths is None and starts is None and window is None
    room = numpy.empty if all_seen else numpy.zeros  # a block leaves out keys that none of it sees
    return room((batch, kv_heads, heads // kv_heads * rows, keys), q.dtype)


def _mix(weights: Any, values: Any, out: Any) -> None:
    """out (R, K, G, T, D) = weights (R, K, G T, S) values (R, K, S, D)."""
    if out.shape[2] == 1:
        numpy.matmul(weights, values, out=out[:, :, 0])
    else:
        out[...] = numpy.matmul(weights, values).reshape(out.shape)


def batch_parts(q: Any, k: Any) -> list[slice]:
    """Sequences for threads to share: those of the parts of a product, which then follow each other, where these hold
    whole ones; else as there are enough scores."""
    batch, rows, heads, _ = q.shape
    return sequence_parts(batch, rows) or split(batch, batch * rows * heads * k.shape[1] >> 16)


def _attend(powers: Any, top: Any, values: Any, out: Any, lse: Any) -> None:
    """out = powers values / the sums of powers (R, K, G, T, S), for values (R, K, S, D), where ``top`` was taken
    off the scores before."""
    *outer, groups, rows, keys = powers.shape
    if rows == 1:
        total = numpy.add.reduce(powers, axis=-1, keepdims=True)
        mixed = numpy.matmul(powers, values[:, :, None])
    else:  # a sum is several times slower than a product with ones
        total = numpy.matmul(powers.reshape(-1, keys), numpy.ones((keys, 1), powers.dtype))
        total = total.reshape(*outer, groups, rows, 1)
        mixed = numpy.matmul(powers.reshape(*outer, -1, keys), values)
        mixed = mixed.reshape(*outer, groups, rows, -1)
    # A query that sees nothing saves +inf, so that the backward's exp(score - lse) is 0 there; one that
    # sees a NaN too: its weights are NaN where the scores are.
    blind = ~(total > 0)
    any_blind = blind.any()
    if any_blind:
        total[blind] = 1
    # The small result is divided, not the big weights.
    numpy.divide(mixed, total, out=out)
    numpy.log(total, out=lse)
    if top is not None:
        lse += top
    if any_blind:
        lse[blind] = numpy.inf


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
    gradients, kept = side_by_side(q, k, v), lse.values if isinstance(lse, Weights) else None
    if q.shape[1] > QUERIES or any(x is not None for x in (*inputs[5:7], window)):
        for gradient in gradients[1:]:  # else one block of queries sees all keys
            gradient[...] = 0

    def one(part: slice) -> None:
        scores = Scores(inputs, causal, scale, window, kept)
        for block in scores.blocks(part):
            if block.keys.start < block.keys.stop:
                _go_back(scores, block, v, lse, dout, *gradients)
            else:
                scores.by_head(gradients[0], block)[...] = 0

    share(one, batch_parts(q, k))
    return *gradients, None, None, None, None, None


def _go_back(
    scores: Scores, block: Block, v: Any, lse: Any, dout: Any, dq: Any, dk: Any, dv: Any
) -> None:
    """Write the gradient of a block's queries, and add to those of the keys and values it sees."""
    queries = scores.queries(block)
    if scores.kept is None:
        sums = scores.by_head(lse.transpose(0, 2, 1, 3), block)
        weights = _normalize(scores.flat(scores.powers(block, queries, sums)[0]))
    else:
        weights = scores.flat(scores.held(block, block.queries.stop - block.queries.start))
    dy = scores.stacked(dout, block, "dout")
    known, values, dknown, dvalues = (
        x[block.rows, block.keys, block.heads].transpose(0, 2, 1, 3) for x in (scores.k, v, dk, dv)
    )
    _add_product(weights.swapaxes(2, 3), dy, dvalues, block)
    dscores = scores.buffer("dscores", *weights.shape)
    numpy.matmul(dy, values.swapaxes(2, 3), out=dscores)
    # The mean of these by the weights: where one weight is nearly 1 it must cancel its own.
    dscores -= numpy.vecdot(dscores, weights)[..., None]
    dscores *= weights
    if not scores.exact:  # else the queries are scaled
        dscores *= scores.scale
    _add_product(dscores.swapaxes(2, 3), queries, dknown, block)
    own = scores.by_head(dq, block)
    _mix(dscores, known, own)
    if scores.exact:
        own *= scores.scale


def side_by_side(q: Any, k: Any, v: Any) -> list[Any]:
    """Arrays like each: where they fit, parts of one, as the heads were before they were split."""
    if not q.shape[1::2] == k.shape[1::2] == v.shape[1::2]:
        return [numpy.empty(x.shape, x.dtype) for x in (q, k, v)]
    heads, more = q.shape[2], k.shape[2]
    packed = numpy.empty((*q.shape[:2], heads + 2 * more, q.shape[3]), q.dtype)
    return [packed[:, :, :heads], packed[:, :, heads : heads + more], packed[:, :, heads + more :]]


def _add_product(left: Any, right: Any, total: Any, block: Block) -> None:
    """total += left @ right, where the first block of queries finds nothing yet."""
    if block.queries.start == 0:
        numpy.matmul(left, right, out=total)
    else:
        total += numpy.matmul(left, right)


def _normalize(weights: Any) -> Any:
    """Have rows of weights (..., S) add up to 1; return them.

    Those of mild scores are powers as they are; and a log-sum-exp far from 0 has been rounded by much, with it
    all weights of its row alike. Those of a row that sees a NaN are 0 but for the NaN's own.
    """
    keys = weights.shape[-1]
    total = numpy.matmul(weights.reshape(-1, keys), numpy.ones((keys, 1), weights.dtype))
    total[total == 0] = 1
    total[numpy.isnan(total)] = numpy.inf
    weights /= total.reshape(*weights.shape[:-1], 1)
    return weights


def cached(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    """The forward of ``cached_attention``."""
    kv_heads = (packed.shape[2] - heads) // 2
    turned = heads + kv_heads
    if cos is not None:
        packed = turn(packed, cos, sin, positions, heads=turned)
    append_rows(keys, packed[:, :, heads:turned], starts)
    append_rows(values, packed[:, :, turned:], starts)
    firsts = None if isinstance(starts, int) else starts
    keys, values = (narrow(widen(cache[:, :stop]), packed.dtype) for cache in (keys, values))
    out, _ = _forward(
        packed[:, :, :heads], keys, values, None, None, lengths, firsts,
        causal=causal, scale=scale, window=window,
    )  # fmt: skip
    ready()  # before the copies of the cache are let go of
    return out.reshape(*out.shape[:2], -1)


def accepts_cached(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, **options: Any,
) -> bool:  # fmt: skip
    """Whether ``cached`` takes these arguments."""
    narrower = isinstance(keys, EightBit) or (is_half(keys) and is_half(values))
    held = plain(packed) and (narrower or plain(packed, keys, values))
    return held and (cos is None or 2 * cos.shape[1] == packed.shape[3])


attention.maker("cpu", _forward, _backward, accepts=_accepts, joins=_joins)
