"""Rotary positions in three passes over all heads at once."""

from collections.abc import Callable
from typing import Any

import numpy

from ..ops.rotary import rotary
from .buffers import plain
from .chain import follow
from .threads import sequence_parts

# The factors made last: every layer of a step asks for the same ones. The arrays are held, so their
# identity stays theirs.
_last: tuple[Any, ...] = (None, None, None, None, None)


def _factors(
    cos: Any, sin: Any, positions: Any, heads: int, still: int, width: int, dtype: Any
) -> tuple[Any, Any]:
    """What each element is multiplied by, and its partner in the other half: (..., T, N, 2, D/2).

    The ``still`` last heads are not turned: theirs are 1 and 0.
    """
    global _last
    key, last = (heads, still, width, dtype), _last  # read once: threads share it
    if last[0] is positions and last[1] is cos and last[2] is sin and last[3] == key:
        return last[4]
    own = numpy.ones((*positions.shape, heads + still, 2, width // 2), dtype)
    other = numpy.zeros_like(own)
    own[..., :heads, :, :] = cos[positions][..., None, None, :]
    other[..., :heads, 0, :] = -sin[positions][..., None, :]
    other[..., :heads, 1, :] = sin[positions][..., None, :]
    _last = (positions, cos, sin, key, (own, other))
    return own, other


def _turns(
    x: Any, cos: Any, sin: Any, positions: Any, heads: int | None
) -> tuple[Any, Callable[[slice], None]]:
    """An array like ``x`` for its heads when they are turned, and what turns those of some sequences."""
    total, width = x.shape[2], x.shape[3]
    turned = total if heads is None else heads
    halves = x.reshape(*x.shape[:3], 2, width // 2)
    factors = _factors(cos, sin, positions, turned, total - turned, width, x.dtype)
    own, other = (numpy.broadcast_to(f, halves.shape) for f in factors)
    out = numpy.empty(halves.shape, x.dtype)

    def one(part: slice) -> None:
        numpy.multiply(halves[part], own[part], out=out[part])
        out[part] += halves[part, ..., ::-1, :] * other[part]

    return out.reshape(x.shape), one


def turn(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    """``x`` (B, T, N, D), its heads turned."""
    out, one = _turns(x, cos, sin, positions, heads)
    one(slice(None))
    return out


def _forward(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    out, one = _turns(x, cos, sin, positions, heads)
    whole = [slice(0, len(x))]
    follow(one, sequence_parts(*x.shape[:2]) or whole, (out,), x.shape[1])
    return out, (cos, sin, positions)


def _accepts(x: Any, cos: Any, *rest: Any, heads: int | None = None) -> bool:
    return plain(x) and 2 * cos.shape[1] == x.shape[3]


def _joins(*arrays: Any, **options: Any) -> bool:
    return True  # an axis is taken apart without a copy


rotary.maker("cpu", _forward, accepts=_accepts, joins=_joins)
