"""Rotary positions (Su et al. 2021, "RoFormer"): a query or key turned by its position."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op


def _turn(x: Any, cos: Any, sin: Any, positions: Any, sign: float, heads: int | None) -> Any:
    xp = namespace(x)
    shape = (*positions.shape, 1, cos.shape[1])
    flat = xp.reshape(positions, (-1,))
    c = xp.reshape(xp.take(cos, flat, axis=0), shape)
    s = xp.reshape(xp.take(sin, flat, axis=0), shape) * sign
    half = cos.shape[1]
    wide = widen(x if heads is None else x[:, :, :heads, :])
    left, right, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = xp.concat((left * c - right * s, right * c + left * s, rest), axis=-1)
    turned = narrow(turned, x.dtype)
    return turned if heads is None else xp.concat((turned, x[:, :, heads:, :]), axis=2)


@op
def rotary(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    """Turn the pairs (i, i + R/2) of the first R of each head's D dimensions.

    ``x`` is (B, T, H, D), ``positions`` (B, T) or (T,) integers, ``cos`` and ``sin`` the tables
    (max positions, R / 2). Dimensions past R, and heads past the first ``heads``, stay as they are.
    """
    return _turn(x, cos, sin, positions, 1.0, heads), (cos, sin, positions)


@rotary.backward
def _(residuals: Any, dout: Any, *, heads: int | None = None) -> Any:
    cos, sin, positions = residuals
    return _turn(dout, cos, sin, positions, -1.0, heads), None, None, None
