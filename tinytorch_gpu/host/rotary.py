"""Rotary positions in three passes over all heads at once."""

from typing import Any

import numpy

from ..ops.rotary import rotary
from .buffers import plain

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


def turn(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    """The forward of ``rotary`` for whole heads."""
    total, width = x.shape[2], x.shape[3]
    turned = total if heads is None else heads
    own, other = _factors(cos, sin, positions, turned, total - turned, width, x.dtype)
    halves = x.reshape(*x.shape[:3], 2, width // 2)
    out = halves * own
    out += halves[..., ::-1, :] * other
    return out.reshape(x.shape), (cos, sin, positions)


def _accepts(x: Any, cos: Any, *rest: Any, heads: int | None = None) -> bool:
    return plain(x) and 2 * cos.shape[1] == x.shape[3]


rotary.maker("cpu", turn, accepts=_accepts)
