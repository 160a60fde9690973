"""Activations in blocks of rows, with one buffer instead of a temporary for every step."""

import math
from collections.abc import Callable
from typing import Any

import numpy

from ..ops import geglu, gelu_tanh, relu, silu, swiglu
from .buffers import plain, row_blocks, rows_of, scratch
from .threads import share

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


class _Simple:
    """An activation of rows (N, C) and its gradient, in blocks that stay in cache."""

    def __init__(self, function: Callable[[Any, Any], None], slope: Callable[..., None]):
        self.function, self.slope = function, slope

    def width(self, inner: int) -> int:
        """Values of a row of the result."""
        return inner

    def into(self, rows: Any, out: Any) -> None:
        """Write the activation of ``rows`` to ``out``."""
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                self.function(rows[part], out[part])

    def gradient_into(self, rows: Any, dy: Any, dx: Any) -> None:
        """Write the gradient of ``rows`` to ``dx``, for ``dy``, that of the result."""
        held = scratch(len(rows), rows.shape[1], rows.dtype, 2)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                self.slope(rows[part], dx[part], *(b[: part.stop - part.start] for b in held))
                dx[part] *= dy[part]

    def forward(self, x: Any) -> Any:
        rows = rows_of(x)
        out = numpy.empty((len(rows), self.width(rows.shape[1])), x.dtype)
        if len(rows) == 1:
            self.into(rows, out)
        else:
            share(lambda part: self.into(rows[part], out[part]), row_blocks(*rows.shape))
        return out.reshape(*x.shape[:-1], out.shape[1]), (x,)

    def backward(self, residuals: Any, dout: Any) -> Any:
        (x,) = residuals
        rows, dy = rows_of(x), rows_of(dout)
        dx = numpy.empty(rows.shape, x.dtype)
        share(
            lambda part: self.gradient_into(rows[part], dy[part], dx[part]), row_blocks(*rows.shape)
        )
        return (dx.reshape(x.shape),)


class _Gated(_Simple):
    """The same of one half of a row, times the other half."""

    def width(self, inner: int) -> int:
        return inner // 2

    def into(self, rows: Any, out: Any) -> None:
        width = out.shape[1]
        for part in row_blocks(*rows.shape):
            with numpy.errstate(over="ignore"):
                self.function(rows[part, :width], out[part])
            out[part] *= rows[part, width:]

    def gradient_into(self, rows: Any, dy: Any, dx: Any) -> None:
        width = dy.shape[1]
        held = scratch(len(rows), width, rows.dtype, 3)
        for part in row_blocks(len(rows), width):
            first, *others = (b[: part.stop - part.start] for b in held)
            gate, up, dgate, dup = (
                y[part, half] for y in (rows, dx) for half in (slice(width), slice(width, None))
            )
            with numpy.errstate(over="ignore"):
                self.slope(gate, first, *others)
                first *= up
                numpy.multiply(first, dy[part], out=dgate)
                self.function(gate, first)
            numpy.multiply(first, dy[part], out=dup)


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


ACTIVATIONS = {
    "relu": _Simple(_relu, _relu_slope),
    "silu": _Simple(_silu, _silu_slope),
    "gelu_tanh": _Simple(_gelu_tanh, _gelu_tanh_slope),
    "swiglu": _Gated(_silu, _silu_slope),
    "geglu": _Gated(_gelu_tanh, _gelu_tanh_slope),
}


def _alone(name: str) -> Callable[..., Any]:
    """The plan of an activation that is an operation of its own: of one token."""

    def plan(out: Any, x: Any) -> Any:
        if x.size != x.shape[-1]:
            return None
        return PLANNED[name](x.reshape(-1), out.reshape(-1))

    return plan


for _operation in (relu, silu, gelu_tanh, swiglu, geglu):
    _own = ACTIVATIONS[_operation.name]
    _operation.maker("cpu", _own.forward, _own.backward, plain, _alone(_operation.name))
