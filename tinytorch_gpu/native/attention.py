"""Attention of whole sequences by the library (kernels/cpu/attention.cpp): training, and prompts."""

from typing import Any

import numpy

from ..backend import narrow, widen
from ..core.tensor import grad_enabled
from ..host.attention import accepts_cached, side_by_side
from ..ops import attention, cached_attention
from ..special import append_rows
from .dropout import is_state
from .library import Operation, packed, pointer
from .rotary import turn
from .sizes import MOST_TOKENS

# sizes, causal, window; scale; lengths, starts; mask and its strides; state, dropout
_SHAPE = "8qd2PP4qPd"
_attention = Operation("attention", 4 * "P3q" + "P" + _SHAPE)  # q, k, v, out; lse
# q, k, v, out, and the gradients of out, q, k, v; lse
_backward = Operation("attention_backward", 8 * "P3q" + "P" + _SHAPE)


def _accepts(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, dropout: float = 0.0, **options: Any,
) -> bool:  # fmt: skip
    if bias is not None or not all(map(_lies, (q, k, v))) or k.shape != v.shape:
        return False
    if dropout and not (state is not None and is_state(state)):
        return False
    batch, _, heads, width = q.shape
    known = k.shape[0] == batch and k.shape[3] == width and q.size and k.size
    return bool(known and heads % k.shape[2] == 0)


def _lies(x: Any) -> bool:
    """Whether the numbers of a head are float32 and lie side by side."""
    return bool(x.dtype == numpy.float32 and x.strides[3] == 4)


def _heads(*arrays: Any) -> list[int]:
    """Each array's address and its strides of batch, row and head."""
    return [n for x in arrays for n in (pointer(x), *(s // 4 for s in x.strides[:3]))]


class _Call:
    """The shape of a call as the library takes it, and what must stay alive meanwhile."""

    def __init__(
        self, inputs: Any, causal: bool, scale: float | None, window: int | None, dropout: float = 0.0
    ):  # fmt: skip
        q, k, _, mask, _, lengths, starts, state = inputs
        (batch, rows, heads, width), (keys, kv_heads) = q.shape, k.shape[1:3]
        self.lengths = _per_row(keys if lengths is None else lengths, batch)
        self.starts = self.lengths - rows if starts is None else _per_row(starts, batch)
        self.mask, strides = None, (0, 0, 0, 0)
        if mask is not None:
            self.mask = _mask(mask, (batch, heads, rows, keys))
            strides = self.mask.strides
        self.work = 4 * batch * heads * rows * keys * width
        numbers = (
            batch,
            rows,
            keys,
            heads,
            kv_heads,
            width,
            causal,
            -1 if window is None else window,
        )
        scale = width**-0.5 if scale is None else scale
        given = (pointer(x) for x in (self.lengths, self.starts, self.mask))
        drawn = pointer(state if dropout else None)
        self.fields = (*numbers, scale, *given, *strides, drawn, dropout)


def _per_row(numbers: Any, batch: int) -> Any:
    """int64 (batch,) of an array of so many numbers, or of one."""
    flat = numpy.asarray(numbers, numpy.int64).reshape(-1)
    return numpy.ascontiguousarray(numpy.broadcast_to(flat, (batch,)))


def _mask(mask: Any, shape: tuple[int, ...]) -> Any:
    """A mask as bytes that are nonzero where a query may look, its missing axes with stride 0."""
    allowed = packed(mask != 0).view(numpy.uint8)
    if allowed.ndim == 3:
        allowed = allowed[:, None]
    return numpy.broadcast_to(allowed, shape)


def _forward(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    inputs = (q, k, v, mask, bias, lengths, starts, state)
    call = _Call(inputs, causal, scale, window, dropout)
    out = numpy.empty(q.shape, numpy.float32)
    lse = None
    if grad_enabled():
        lse = numpy.empty((q.shape[0], q.shape[2], q.shape[1], 1), numpy.float32)
    _attention(call.work, *_heads(q, k, v, out), pointer(lse), *call.fields)
    return out, None if lse is None else (inputs, out, lse)


def _gradients(
    residuals: Any, dout: Any, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Any:  # fmt: skip
    inputs, out, lse = residuals
    q, k, v, *_ = inputs
    dout = dout if _lies(dout) else packed(dout)
    call, made = _Call(inputs, causal, scale, window, dropout), side_by_side(q, k, v)
    _backward(3 * call.work, *_heads(q, k, v, out, dout, *made), pointer(lse), *call.fields)
    return *made, None, None, None, None, None


def _accepts_prompt(
    new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None, sin: Any = None,
    positions: Any = None, *, heads: int, stop: int, **options: Any,
) -> bool:  # fmt: skip
    if new.dtype != numpy.float32 or new.shape[1] <= MOST_TOKENS or not (new.size and stop):
        return False
    kv_heads = (new.shape[2] - heads) // 2
    whole = kv_heads > 0 and heads % kv_heads == 0 and keys.shape[3] == new.shape[3]
    return whole and accepts_cached(new, keys, values, starts, lengths, cos, sin, positions)


def _prompt(
    new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None, sin: Any = None,
    positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    """Turn, append and attend for many new tokens."""
    turned = heads + (new.shape[2] - heads) // 2
    if cos is not None:
        new = turn(new, cos, sin, positions, heads=turned)
    new = packed(new)
    append_rows(keys, new[:, :, heads:turned], starts)
    append_rows(values, new[:, :, turned:], starts)
    firsts = None if isinstance(starts, int) else starts
    known = (narrow(widen(cache[:, :stop]), new.dtype) for cache in (keys, values))
    known = (x if _lies(x) else packed(x) for x in known)
    inputs = (new[:, :, :heads], *known, None, None, lengths, firsts, None)
    call = _Call(inputs, causal, scale, window)
    out = numpy.empty((*new.shape[:2], heads, new.shape[3]), numpy.float32)
    _attention(call.work, *_heads(*inputs[:3], out), 0, *call.fields)
    return out.reshape(*out.shape[:2], -1)


attention.maker("cpu", _forward, _gradients, accepts=_accepts, ahead=True)
cached_attention.maker("cpu", _prompt, accepts=_accepts_prompt, ahead=True)
