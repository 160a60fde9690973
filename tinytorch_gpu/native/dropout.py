"""Dropout by the library (kernels/cpu/dropout.cpp), of floats in 32 and 16 bits."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..ops import dropout
from .blocks import FORMATS, PLAIN
from .library import Operation, packed, pointer

_dropout = Operation("dropout", "3P2qd")  # x, state, out; count, format; p


def _accepts(x: Any, state: Any, *, p: float) -> bool:
    return bool(x.ndim) and dtype_name(x.dtype) in PLAIN and is_state(state)


def is_state(state: Any) -> bool:
    """Whether the library can draw for ``state``: uint64 [seed, offset], side by side."""
    return bool(state.dtype == numpy.uint64 and state.shape == (2,) and state.flags.c_contiguous)


def _drop(x: Any, state: Any, p: float) -> Any:
    x = packed(x)
    out = numpy.empty(x.shape, x.dtype)
    given = (pointer(a) for a in (x, state, out))
    _dropout(4 * x.size, *given, x.size, FORMATS[dtype_name(x.dtype)], p)
    return out


def _forward(x: Any, state: Any, *, p: float) -> Any:
    return _drop(x, state, p), (state,)


def _backward(residuals: Any, dout: Any, *, p: float) -> Any:
    return _drop(dout, residuals[0], p), None


dropout.maker("cpu", _forward, _backward, accepts=_accepts, ahead=True)
