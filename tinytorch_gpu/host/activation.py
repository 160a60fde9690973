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


# With slopes: each writes the derivative at x too, to ``slope``, which may be x, and has three buffers for itself.
BUFFERS = 3


def _relu_both(x: Any, out: Any, slope: Any, *buffers: Any) -> None:
    numpy.maximum(x, 0, out=out)
    numpy.greater(x, 0, out=slope)


def _silu_both(x: Any, out: Any, slope: Any, gate: Any, rest: Any, work: Any) -> None:
    """x gate, and gate + x gate rest."""
    numpy.negative(x, out=rest)
    _gated(x, out, gate, rest)
    rest *= out
    numpy.add(rest, gate, out=slope)


def _gelu_tanh_both(x: Any, out: Any, slope: Any, gate: Any, rest: Any, work: Any) -> None:
    """x gate, and gate + x gate rest 2u', where gate is 1 / (1 + e ** -2u)."""
    numpy.multiply(x, x, out=work)
    numpy.multiply(work, -2 * _SCALE * _CUBIC, out=rest)
    rest -= 2 * _SCALE
    rest *= x
    _gated(x, out, gate, rest)
    work *= 6 * _SCALE * _CUBIC
    work += 2 * _SCALE
    work *= rest  # 0 for a large x, whose other factors may be infinite together
    work *= out
    numpy.add(work, gate, out=slope)


def _gated(x: Any, out: Any, gate: Any, rest: Any) -> None:
    """gate = 1 / (1 + e ** rest), out = x gate, rest = 1 - gate: a product, for where a difference is all rounding."""
    numpy.exp(rest, out=rest)
    numpy.add(rest, 1, out=gate)
    numpy.divide(x, gate, out=out)
    numpy.divide(1, gate, out=gate)
    most = numpy.finfo(rest.dtype).max
    # Infinity times 0 is no number. To look for one takes a fraction of the time of a minimum.
    if not numpy.maximum.reduce(rest, axis=None, initial=0) <= most:
        numpy.minimum(rest, most, out=rest)
    rest *= gate


class _Simple:
    """An activation of rows (N, C) and its gradient, in blocks that stay in cache."""

    def __init__(self, function: Callable[[Any, Any], None], both: Callable[..., None]):
        self.function, self.both = function, both

    def width(self, inner: int) -> int:
        """Values of a row of the result."""
        return inner

    def into(self, rows: Any, out: Any) -> None:
        """Write the activation of ``rows`` to ``out``."""
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                self.function(rows[part], out[part])

    def with_slope_into(self, rows: Any, out: Any, slope: Any) -> None:
        """The same, and the derivative there to ``slope``, which may be ``rows``."""
        held = scratch(len(rows), rows.shape[1], rows.dtype, BUFFERS)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                buffers = (b[: part.stop - part.start] for b in held)
                self.both(rows[part], out[part], slope[part], *buffers)

    def gradient_into(self, rows: Any, dy: Any, dx: Any) -> None:
        """Write the gradient of ``rows`` to ``dx``, for ``dy``, that of the result."""
        held = scratch(len(rows), rows.shape[1], rows.dtype, 1 + BUFFERS)
        with numpy.errstate(over="ignore"):
            for part in row_blocks(*rows.shape):
                out, *buffers = (b[: part.stop - part.start] for b in held)
                self.both(rows[part], out, dx[part], *buffers)
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
        held = scratch(len(rows), width, rows.dtype, 2 + BUFFERS)
        for part in row_blocks(len(rows), width):
            out, slope, *buffers = (b[: part.stop - part.start] for b in held)
            gate, up, dgate, dup = (
                y[part, half] for y in (rows, dx) for half in (slice(width), slice(width, None))
            )
            with numpy.errstate(over="ignore"):
                self.both(gate, out, slope, *buffers)
            slope *= up
            numpy.multiply(slope, dy[part], out=dgate)
            numpy.multiply(out, dy[part], out=dup)


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
    "relu": _Simple(_relu, _relu_both),
    "silu": _Simple(_silu, _silu_both),
    "gelu_tanh": _Simple(_gelu_tanh, _gelu_tanh_both),
    "swiglu": _Gated(_silu, _silu_both),
    "geglu": _Gated(_gelu_tanh, _gelu_tanh_both),
}
# Whose derivative takes the place of what they were applied to, for a backward.
SLOPED = tuple(name for name, own in ACTIVATIONS.items() if not isinstance(own, _Gated))


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
