"""Activations in blocks of rows, with one buffer instead of a temporary for every step."""

import math
from collections.abc import Callable
from typing import Any

import numpy

from ..ops import geglu, gelu_tanh, relu, silu, swiglu
from .buffers import SMALL, plain, row_blocks, rows_of, scratch

_SCALE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _silu(x: Any, out: Any) -> None:
    """out = x / (1 + e ** -x). Far on the left e ** -x is inf and the quotient 0, as it should."""
    numpy.negative(x, out=out)
    numpy.exp(out, out=out)
    out += 1
    numpy.divide(x, out, out=out)


def _gelu_tanh(x: Any, out: Any) -> None:
    """x (1 + tanh u) / 2 is x / (1 + e ** -2u), and exp takes half the time of tanh."""
    numpy.multiply(x, x, out=out)
    out *= -2 * _SCALE * _CUBIC
    out -= 2 * _SCALE
    out *= x
    numpy.exp(out, out=out)
    out += 1
    numpy.divide(x, out, out=out)


def _relu(x: Any, out: Any) -> None:
    numpy.maximum(x, 0, out=out)


# Slopes: each writes the derivative at x to ``out``, and has two buffers for itself.


def _relu_slope(x: Any, out: Any, work: Any, more: Any) -> None:
    numpy.greater(x, 0, out=out)


def _silu_slope(x: Any, out: Any, work: Any, more: Any) -> None:
    """gate (1 + x (1 - gate))."""
    numpy.negative(x, out=work)
    numpy.exp(work, out=work)
    work += 1
    numpy.reciprocal(work, out=work)
    numpy.subtract(1, work, out=out)
    out *= x
    out += 1
    out *= work


def _gelu_tanh_slope(x: Any, out: Any, work: Any, more: Any) -> None:
    """gate + x gate (1 - gate) 2u', where gate is 1 / (1 + e ** -2u)."""
    numpy.multiply(x, x, out=more)
    numpy.multiply(more, -2 * _SCALE * _CUBIC, out=work)
    work -= 2 * _SCALE
    work *= x
    numpy.exp(work, out=work)
    work += 1
    numpy.reciprocal(work, out=work)
    more *= 6 * _SCALE * _CUBIC
    more += 2 * _SCALE
    more *= x
    numpy.subtract(1, work, out=out)
    out *= more
    out += 1
    out *= work


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


def _simple_backward(slope: Callable[[Any, Any, Any, Any], None]) -> Callable[..., Any]:
    def backward(residuals: Any, dout: Any) -> Any:
        (x,) = residuals
        rows, dy = rows_of(x), rows_of(dout)
        dx = numpy.empty(rows.shape, x.dtype)
        held = scratch(len(rows), rows.shape[1], x.dtype, 2)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(len(rows), rows.shape[1], SMALL):
                slope(rows[part], dx[part], *(b[: part.stop - part.start] for b in held))
                dx[part] *= dy[part]
        return (dx.reshape(x.shape),)

    return backward


def _gated_backward(
    function: Callable[[Any, Any], None], slope: Callable[[Any, Any, Any, Any], None]
) -> Callable[..., Any]:
    def backward(residuals: Any, dout: Any) -> Any:
        (x,) = residuals
        rows, dy = rows_of(x), rows_of(dout)
        width = rows.shape[1] // 2
        dx = numpy.empty(rows.shape, x.dtype)
        held = scratch(len(rows), width, x.dtype, 3)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(len(rows), width, SMALL):
                one, *others = (b[: part.stop - part.start] for b in held)
                gate, up, dgate, dup = (
                    y[part, half] for y in (rows, dx) for half in (slice(width), slice(width, None))
                )
                slope(gate, one, *others)
                one *= up
                numpy.multiply(one, dy[part], out=dgate)
                function(gate, one)
                numpy.multiply(one, dy[part], out=dup)
        return (dx.reshape(x.shape),)

    return backward


def _plan(function: Callable[[Any, Any], None], gated: bool) -> Callable[[Any, Any], Any]:
    """The activation of one token from ``inner`` to ``out`` (both 1-D), ready to repeat."""

    def planned(inner: Any, out: Any) -> Any:
        first, second = (inner[: len(out)], inner[len(out) :]) if gated else (inner, None)

        def run() -> None:
            with numpy.errstate(over="ignore"):
                function(first, out)
            if second is not None:
                numpy.multiply(out, second, out=out)

        return run

    return planned


# For a linear map that ends in an activation.
PLANNED = {
    "relu": _plan(_relu, False),
    "silu": _plan(_silu, False),
    "gelu_tanh": _plan(_gelu_tanh, False),
    "swiglu": _plan(_silu, True),
    "geglu": _plan(_gelu_tanh, True),
}


def _alone(name: str) -> Callable[..., Any]:
    """The plan of an activation that is an operation of its own: of one token."""

    def plan(out: Any, x: Any) -> Any:
        if x.size != x.shape[-1]:
            return None
        return PLANNED[name](x.reshape(-1), out.reshape(-1))

    return plan


relu.maker("cpu", _simple(_relu), _simple_backward(_relu_slope), plain, _alone("relu"))
silu.maker("cpu", _simple(_silu), _simple_backward(_silu_slope), plain, _alone("silu"))
gelu_tanh.maker(
    "cpu", _simple(_gelu_tanh), _simple_backward(_gelu_tanh_slope), plain, _alone("gelu_tanh")
)
swiglu.maker("cpu", _gated(_silu), _gated_backward(_silu, _silu_slope), plain, _alone("swiglu"))
geglu.maker(
    "cpu", _gated(_gelu_tanh), _gated_backward(_gelu_tanh, _gelu_tanh_slope), plain, _alone("geglu")
)
