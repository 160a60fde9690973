"""Rotary positions by the library (kernels/cpu/rotary.cpp), of floats in 32 and 16 bits."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..ops.rotary import rotary
from .blocks import FORMATS, PLAIN
from .library import Operation, packed, pointer

# x, cos, sin, positions, out; tokens, places, heads, width, format, turned heads, pairs; sign
_rotary = Operation("rotary", "5P7qd")


def _accepts(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> bool:
    return (
        dtype_name(x.dtype) in PLAIN
        and "int" in positions.dtype.name
        and cos.dtype != numpy.float64
        and cos.shape == sin.shape
        and positions.shape in (x.shape[:2], x.shape[1:2])
        and 2 * cos.shape[1] <= x.shape[3]
        and (heads is None or 0 <= heads <= x.shape[2])
        and bool(x.size)
    )


def turn(
    x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None, sign: float = 1.0
) -> Any:
    """Turn the first ``heads`` of x (B, T, H, D), or all of them; -1 for ``sign`` turns back."""
    x, places = packed(x), packed(positions.astype(numpy.int64, copy=False))
    if not (places.min() >= 0 and places.max() < len(cos)):
        raise IndexError(f"positions {places.min()} to {places.max()} of tables of {len(cos)}")
    tables = [packed(table.astype(numpy.float32, copy=False)) for table in (cos, sin)]
    out = numpy.empty(x.shape, x.dtype)
    batch, count, total, width = x.shape
    turned = total if heads is None else heads
    _rotary(
        2 * x.size, *map(pointer, (x, *tables, places, out)), batch * count, places.size, total,
        width, FORMATS[dtype_name(x.dtype)], turned, cos.shape[1], sign,
    )  # fmt: skip
    return out


def _forward(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    return turn(x, cos, sin, positions, heads=heads), (cos, sin, positions)


def _backward(residuals: Any, dout: Any, *, heads: int | None = None) -> Any:
    return turn(dout, *residuals, heads=heads, sign=-1.0), None, None, None


rotary.maker("cpu", _forward, _backward, accepts=_accepts, ahead=True)
