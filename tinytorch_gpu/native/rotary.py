"""Rotary positions written straight into the result."""

from typing import Any

import numpy

from ..ops import rotary
from .buffers import plain


def _forward(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    half = cos.shape[1]
    c, s = (table[positions][..., None, :].astype(x.dtype, copy=False) for table in (cos, sin))
    turned = x if heads is None else x[:, :, :heads]
    out = numpy.empty(x.shape, x.dtype)
    place = out if heads is None else out[:, :, :heads]
    left, right = turned[..., :half], turned[..., half : 2 * half]
    first = numpy.multiply(left, c, out=place[..., :half])
    first -= right * s
    second = numpy.multiply(right, c, out=place[..., half : 2 * half])
    second += left * s
    place[..., 2 * half :] = turned[..., 2 * half :]
    if heads is not None:
        out[:, :, heads:] = x[:, :, heads:]
    return out, (cos, sin, positions)


def _accepts(x: Any, *tables: Any, heads: int | None = None) -> bool:
    return plain(x)


rotary.maker("cpu", _forward, accepts=_accepts)
