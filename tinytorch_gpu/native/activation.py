"""Activations in blocks of rows, with one buffer instead of a temporary for every step."""

import math
from collections.abc import Callable
from typing import Any

import numpy

from ..ops import geglu, gelu_tanh, relu, silu, swiglu
from .buffers import plain, row_blocks, rows_of

_SCALE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _silu(x: Any, out: Any) -> None:
    """out = x / (1 + e ** -x). Far on the left e ** -x is inf and the quotient 0, as it should."""
    numpy.negative(x, out=out)
    numpy.exp(out, out=out)
    out += 1
    numpy.divide(x, out, out=out)


def _gelu_tanh(x: Any, out: Any) -> None:
    numpy.multiply(x, x, out=out)
    out *= _SCALE * _CUBIC
    out += _SCALE
    out *= x
    numpy.tanh(out, out=out)
    out += 1
    out *= x
    out *= 0.5


def _relu(x: Any, out: Any) -> None:
    numpy.maximum(x, 0, out=out)


def _simple(function: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def forward(x: Any) -> Any:
        rows = rows_of(x)
        out = numpy.empty(rows.shape, x.dtype)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                function(rows[part], out[part])
        return out.reshape(x.shape), (x,)

    return forward


def _gated(function: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def forward(x: Any) -> Any:
        rows = rows_of(x)
        width = rows.shape[1] // 2
        out = numpy.empty((rows.shape[0], width), x.dtype)
        if len(rows) == 1:  # one token: no blocks
            with numpy.errstate(over="ignore"):
                function(rows[:, :width], out)
            out *= rows[:, width:]
            return out.reshape(*x.shape[:-1], width), (x,)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                function(rows[part, :width], out[part])
                out[part] *= rows[part, width:]
        return out.reshape(*x.shape[:-1], width), (x,)

    return forward


def _plan(function: Callable[[Any, Any], None], gated: bool) -> Callable[[Any, Any], Any]:
    """The activation of one token from ``inner`` to ``out`` (both 1-D), ready to repeat."""

    def planned(inner: Any, out: Any) -> Any:
        first, second = (inner[: len(out)], inner[len(out) :]) if gated else (inner, None)

        def run() -> None:
            function(first, out)
            if second is not None:
                numpy.multiply(out, second, out=out)

        return run

    return planned


# For a linear map that ends in an activation. The caller ignores overflow (see _silu).
PLANNED = {
    "relu": _plan(_relu, False),
    "silu": _plan(_silu, False),
    "gelu_tanh": _plan(_gelu_tanh, False),
    "swiglu": _plan(_silu, True),
    "geglu": _plan(_gelu_tanh, True),
}

relu.maker("cpu", _simple(_relu), accepts=plain)
silu.maker("cpu", _simple(_silu), accepts=plain)
gelu_tanh.maker("cpu", _simple(_gelu_tanh), accepts=plain)
swiglu.maker("cpu", _gated(_silu), accepts=plain)
geglu.maker("cpu", _gated(_gelu_tanh), accepts=plain)
