"""Scaled dot-product attention, and the append to its cache.

The reference builds the (B, H, T, S) score matrix; the kernels never do (FlashAttention, Dao et al.
2022) and go back from the log-sum-exp of each row, so that is what is saved.
"""

from typing import Any, NamedTuple

from ..backend import namespace, narrow, widen
from ..core.op import op
from ..special import append_rows
from .dropout import keep
from .elementwise import unbroadcast
from .rotary import rotary
from .shape import split_heads


class Weights(NamedTuple):
    """In the place of the log-sum-exp of each row: the weights themselves, (B, H, T, S) in any stacking of the
    heads, where a maker finds them few enough to keep."""

    values: Any


@op
def attention(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    """Average the values by how well their keys match each query: gives (B, T, H, D).

    ``q`` is (B, T, H, D), ``k`` and ``v`` (B, S, K, D) with H a multiple of K: consecutive query
    heads share a key head. ``mask`` (T, S), (B, T, S) or (B, H, T, S): nonzero may look.
    ``bias`` broadcasts to (B, H, T, S) and is added to the scores. Only the first ``lengths[b]``
    keys of row b count. Query i stands at ``starts[b] + i``, by default so that the last query is
    at the last key; ``causal`` hides later keys and ``window`` keys that far back and further.
    ``state`` [seed, offset] draws the ``dropout``. A query that sees no key gives zeros.
    """
    out, _, residuals = _attend(
        (q, k, v, mask, bias, lengths, starts, state), causal, scale, window, dropout
    )
    return out, residuals


@attention.backward
def _(residuals: Any, dout: Any, **options: Any) -> Any:
    return _attend_backward(residuals, dout, None, **options)


@op(outputs=2)
def attention_with_weights(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    """As ``attention``, and also the weights (B, H, T, S) before dropout."""
    out, weights, residuals = _attend(
        (q, k, v, mask, bias, lengths, starts, state), causal, scale, window, dropout
    )
    return (out, narrow(weights, q.dtype)), residuals


@attention_with_weights.backward
def _(residuals: Any, dout: Any, dweights: Any, **options: Any) -> Any:
    return _attend_backward(residuals, dout, dweights, **options)


@op(mutates=("keys", "values"), differentiable=False, shown_as="attention")
def cached_attention(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    """Turn, append and attend: what a step does between its two linear maps. Gives (B, T, H D).

    ``packed`` (B, T, H + 2 K, D) holds new queries, keys and values; with ``cos`` and ``sin`` the
    first two are turned to ``positions`` (see ``rotary``). Keys and values are written, in place,
    into the cache's ``keys`` and ``values`` (B, capacity, K, D) from ``starts`` (B,) on, or from
    one int in all rows; then the queries attend to the first ``stop`` places, of which the first
    ``lengths`` (B,) of each row count (None: all). ``scale`` multiplies the scores, by default by 1 / sqrt(D).
    """
    kv_heads = (packed.shape[2] - heads) // 2
    if cos is not None:
        packed, _ = rotary.reference(packed, cos, sin, positions, heads=heads + kv_heads)
    (q, k, v), _ = split_heads.reference(packed, sizes=(heads, kv_heads, kv_heads))
    append_rows(keys, k, starts)
    append_rows(values, v, starts)
    options = {"causal": causal, "scale": scale, "window": window}
    firsts = None if isinstance(starts, int) else starts
    known = (keys[:, :stop, ...], values[:, :stop, ...])
    out, _ = attention.reference(q, *known, None, None, lengths, firsts, **options)
    return namespace(out).reshape(out, (*out.shape[:2], heads * out.shape[3]))


def _scale(q: Any, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _by_key_head(x: Any, kv_heads: int) -> Any:
    """(B, T, H, D) -> (B, K, G T, D): the query heads of one key head stacked, no keys repeated."""
    xp = namespace(x)
    batch, length, heads, width = x.shape
    moved = xp.permute_dims(x, (0, 2, 1, 3))
    return xp.reshape(moved, (batch, kv_heads, heads // kv_heads * length, width))


def _by_token(x: Any, heads: int, length: int) -> Any:
    """(B, K, G T, D) -> (B, T, H, D)."""
    xp = namespace(x)
    apart = xp.reshape(x, (x.shape[0], heads, length, x.shape[-1]))
    return xp.permute_dims(apart, (0, 2, 1, 3))


def _visible(
    q: Any, k: Any, mask: Any, lengths: Any, starts: Any, causal: bool, window: Any
) -> Any:
    """Which keys each query may look at, broadcastable to (B, H, T, S); None for all."""
    xp, (rows, keys) = namespace(q), (q.shape[1], k.shape[1])
    seen = None
    if rows == 1 and starts is None and lengths is None:
        causal = False  # the last query sees every key
    place = xp.arange(keys)[None, None, None, :]
    if lengths is not None:
        seen = place < xp.reshape(lengths, (-1, 1, 1, 1))
    if causal or window is not None:
        if starts is None and lengths is None:
            first = keys - rows  # no array: making one on a GPU would be a copy from the host
        else:
            starts = lengths - rows if starts is None else starts
            first = xp.reshape(starts, (-1, 1, 1, 1))
        query = first + xp.arange(rows)[None, None, :, None]
        if causal:
            seen = place <= query if seen is None else seen & (place <= query)
        if window is not None:
            near = query - place < window
            seen = near if seen is None else seen & near
    if mask is not None:
        allowed = mask if mask.dtype == xp.bool else mask != 0
        if len(allowed.shape) < 4:
            extra = (1, 1) if len(allowed.shape) == 2 else (allowed.shape[0], 1)
            allowed = xp.reshape(allowed, (*extra, *allowed.shape[-2:]))
        seen = allowed if seen is None else seen & allowed
    return seen


def _scores(inputs: Any, causal: bool, scale: Any, window: Any) -> Any:
    q, k, _, mask, bias, lengths, starts, _ = inputs
    xp, (batch, rows, heads, _) = namespace(q), q.shape
    kv_heads = k.shape[2]
    products = _by_key_head(widen(q), kv_heads) @ xp.permute_dims(widen(k), (0, 2, 3, 1))
    scores = xp.reshape(products, (batch, heads, rows, k.shape[1])) * _scale(q, scale)
    if bias is not None:
        scores = scores + widen(bias)
    seen = _visible(q, k, mask, lengths, starts, causal, window)
    if seen is None:
        return scores
    return xp.where(seen, scores, -float("inf"))


def _attend(inputs: Any, causal: bool, scale: Any, window: Any, dropout: float) -> Any:
    q, k, v, *_, state = inputs
    xp, (batch, rows, heads, _) = namespace(q), q.shape
    scores = _scores(inputs, causal, scale, window)
    top = xp.max(scores, axis=-1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    powers = xp.exp(scores - top)
    total = xp.sum(powers, axis=-1, keepdims=True)
    some = total > 0
    total = xp.where(some, total, xp.ones_like(total))
    weights = powers / total
    # A row that sees nothing saves +inf, so that the backward's exp(score - lse) is 0 there.
    lse = xp.where(some, top + xp.log(total), xp.full_like(top, float("inf")))
    kept = weights * keep(state, weights.shape, dropout, weights.dtype) if dropout else weights
    stacked = xp.reshape(kept, (batch, k.shape[2], -1, k.shape[1]))
    mixed = stacked @ xp.permute_dims(widen(v), (0, 2, 1, 3))
    out = narrow(_by_token(mixed, heads, rows), q.dtype)
    return out, weights, (inputs, out, lse)


def weights_of(residuals: Any, causal: bool, scale: Any, window: Any) -> Any:
    """The weights (B, H, T, S) of a forward, from what it has saved."""
    inputs, _, lse = residuals
    if isinstance(lse, Weights):
        (batch, rows, heads, _), keys = inputs[0].shape, inputs[1].shape[1]
        return namespace(lse.values).reshape(lse.values, (batch, heads, rows, keys))
    return namespace(lse).exp(_scores(inputs, causal, scale, window) - lse)


def _attend_backward(
    residuals: Any, dout: Any, dweights: Any, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    inputs, out, _ = residuals
    q, k, v, _, bias, _, _, state = inputs
    xp, (batch, rows, heads, _) = namespace(q), q.shape
    kv_heads, keys = k.shape[2], k.shape[1]
    weights = weights_of(residuals, causal, scale, window)
    stacked = (batch, kv_heads, -1, keys)
    dy = _by_key_head(widen(dout), kv_heads)
    dkept = xp.reshape(dy @ xp.permute_dims(widen(v), (0, 2, 3, 1)), weights.shape)
    kept = weights
    if dropout:
        factor = keep(state, weights.shape, dropout, weights.dtype)
        kept, dkept = weights * factor, dkept * factor
    if dweights is not None:
        dkept = dkept + widen(dweights)
    # The mean of dkept by the weights, from the result: summed by weights made anew, the rounding of
    # a large lse would leave a part of dkept where it should cancel.
    mean = xp.sum(dy * _by_key_head(widen(out), kv_heads), axis=-1, keepdims=True)
    mean = xp.reshape(mean, (batch, heads, rows, 1))
    if dweights is not None:
        mean = mean + xp.sum(widen(dweights) * weights, axis=-1, keepdims=True)
    dscores = weights * (dkept - mean)
    dbias = None if bias is None else narrow(unbroadcast(dscores, bias.shape), bias.dtype)
    scaled = xp.reshape(dscores * _scale(q, scale), stacked)
    dq = _by_token(scaled @ xp.permute_dims(widen(k), (0, 2, 1, 3)), heads, rows)
    back = xp.permute_dims(scaled, (0, 1, 3, 2)) @ _by_key_head(widen(q), kv_heads)
    dv = xp.permute_dims(xp.reshape(kept, stacked), (0, 1, 3, 2)) @ dy
    dk, dv = (xp.permute_dims(x, (0, 2, 1, 3)) for x in (back, dv))
    return (
        narrow(dq, q.dtype), narrow(dk, k.dtype), narrow(dv, v.dtype),
        None, dbias, None, None, None,
    )  # fmt: skip
