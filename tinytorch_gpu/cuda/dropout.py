"""Dropout: launches of kernels/dropout.cu."""

from typing import Any

from ..backend import dtype_name
from ..ops import dropout
from .launch import ELEMENTS, Source, element, empty, is_element, packed

_BLOCK = 256

SOURCE = Source("dropout.cu", REAL=ELEMENTS.values())
_kernel = SOURCE.kernel("dropout")


def _dropped(x: Any, state: Any, p: float) -> Any:
    x, state = packed(x), packed(state)
    out = empty(x, x.shape)
    grid = -(-x.size // (_BLOCK * (16 // x.dtype.itemsize)))
    _kernel(grid, _BLOCK, x, state, out, x.size, p, 1 / (1 - p), REAL=element(x))
    return out


def _forward(x: Any, state: Any, *, p: float) -> Any:
    return _dropped(x, state, p), (state,)


def _backward(residuals: Any, dout: Any, *, p: float) -> Any:
    return _dropped(dout, residuals[0], p), None


def _accepts(x: Any, state: Any, *, p: float) -> bool:
    return is_element(x) and dtype_name(state.dtype) == "uint64" and state.shape == (2,)


dropout.maker("cuda", _forward, _backward, _accepts)
