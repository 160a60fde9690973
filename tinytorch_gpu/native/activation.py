"""Activations by the library (kernels/cpu/activation.cpp)."""

from collections.abc import Callable
from typing import Any

import numpy

from ..ops import geglu, gelu, gelu_tanh, relu, silu, swiglu
from .library import Operation, Record, packed, pointer

_activation = Operation("activation", "2P3q")  # x, out; rows, width, activation
_backward = Operation("activation_backward", "3P3q")  # x, dy, dx; rows, width, activation

# The numbers of kernels/cpu/activation.h.
ACTIVATIONS = {
    None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "swiglu": 5, "geglu": 6,
}  # fmt: skip
GATED = ("swiglu", "geglu")


def _accepts(name: str) -> Callable[[Any], bool]:
    """A gated one of an odd width is the reference's, which says what is wrong."""
    even = 2 if name in GATED else 1
    return lambda x: bool(x.dtype == numpy.float32 and x.ndim and x.shape[-1] % even == 0)


def activate(name: str, x: Any, out: Any) -> None:
    """Write the activation of ``x`` (..., C), which lies in memory in order, to ``out``."""
    _activation(4 * out.size, pointer(x), pointer(out), *_sizes(name, out))


def activation_gradient(name: str, x: Any, dy: Any, dx: Any) -> None:
    """Write the gradient of ``x`` to ``dx``, for ``dy``, that of the result."""
    _backward(4 * dy.size, pointer(x), pointer(dy), pointer(dx), *_sizes(name, dy))


def _sizes(name: str, out: Any) -> tuple[int, int, int]:
    """(rows, width, activation); rows that follow each other in memory are one."""
    if name not in GATED:
        return 1, out.size, ACTIVATIONS[name]
    width = out.shape[-1]
    return out.size // max(width, 1), width, ACTIVATIONS[name]


def _forward(name: str) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        width = x.shape[-1] // 2 if name in GATED else x.shape[-1]
        out = numpy.empty((*x.shape[:-1], width), numpy.float32)
        activate(name, packed(x), out)
        return out, (x,)

    return forward


def _gradient(name: str) -> Callable[..., Any]:
    def backward(residuals: Any, dout: Any) -> Any:
        (x,) = residuals
        dx = numpy.empty(x.shape, numpy.float32)
        activation_gradient(name, packed(x), packed(dout), dx)
        return (dx,)

    return backward


def _plan(name: str) -> Callable[[Any, Any], Record | None]:
    def plan(out: Any, x: Any) -> Record | None:
        if not (x.flags.c_contiguous and out.flags.c_contiguous):
            return None
        return _activation.record((x, out), pointer(x), pointer(out), *_sizes(name, out))

    return plan


for _op in (relu, gelu, gelu_tanh, silu, swiglu, geglu):
    _name = _op.name
    _op.maker("cpu", _forward(_name), _gradient(_name), _accepts(_name), _plan(_name), ahead=True)
