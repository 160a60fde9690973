"""Sums of arrays of one shape, and arrays in other floats, by the library (kernels/cpu/elementwise.cpp)."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..ops import add, cast
from .blocks import FORMATS, PLAIN
from .library import Operation, Record, packed, pointer

_add = Operation("add", "3Pq")  # a, b, out; count
_cast = Operation("cast", "2P3q")  # x, out; count, format, and that of out


def _accepts(a: Any, b: Any) -> bool:
    return all(
        isinstance(x, numpy.ndarray) and x.dtype == numpy.float32 and x.flags.c_contiguous
        for x in (a, b)
    ) and bool(a.shape == b.shape)


def _forward(a: Any, b: Any) -> Any:
    return add.reference(a, b)  # a sum of its own is quick enough in NumPy


def _plan(out: Any, a: Any, b: Any) -> Record:
    return _add.record((a, b, out), *map(pointer, (a, b, out)), out.size)


def converted(x: Any, dtype: Any) -> Any:
    """An array of floats in 32 or 16 bits in another such dtype; itself if it has that."""
    if x.dtype == dtype:
        return x
    x, out = packed(numpy.asarray(x)), numpy.empty(x.shape, dtype)
    formats = (FORMATS[dtype_name(each)] for each in (x.dtype, out.dtype))
    _cast(x.size, pointer(x), pointer(out), x.size, *formats)
    return out


def _cast_accepts(x: Any, *, dtype: Any) -> bool:
    wanted = numpy.dtype(dtype)
    return x.dtype != wanted and dtype_name(x.dtype) in PLAIN and dtype_name(wanted) in PLAIN


def _cast_forward(x: Any, *, dtype: Any) -> Any:
    return converted(x, dtype), (x.dtype,)


def _cast_backward(residuals: Any, dout: Any, *, dtype: Any) -> Any:
    return (converted(dout, residuals[0]),)


cast.maker("cpu", _cast_forward, _cast_backward, accepts=_cast_accepts, ahead=True)
add.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
