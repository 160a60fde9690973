"""Linear maps by the library (kernels/cpu/linear.cpp): any number of rows, any storage of the weight."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..host.linear import backward
from ..ops import linear
from .library import Operation, pointer

# x, weight, bias, residual, inner, out, scratch; rows, width, outs, format, bias format, activation
_linear = Operation("linear", "7P6q")

# The numbers of kernels/cpu/linear.h and activation.h.
_FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2}
ACTIVATIONS = {
    None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "swiglu": 5, "geglu": 6,
}  # fmt: skip
GATED = ("swiglu", "geglu")


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> bool:  # fmt: skip
    return (
        x.dtype == numpy.float32
        and dtype_name(weight.dtype) in _FORMATS
        and weight.flags.c_contiguous
        and bool(x.size and weight.size)
        and (bias is None or dtype_name(bias.dtype) in _FORMATS)
        and (residual is None or residual.dtype == numpy.float32)
    )


def _fields(
    x: Any, weight: Any, bias: Any, residual: Any, inner: Any, out: Any, activation: str | None
) -> tuple[int, ...]:
    width, outs = x.shape[-1], weight.shape[0]
    return (
        *map(pointer, (x, weight, bias, residual, inner, out, None)),
        x.size // width, width, outs, _FORMATS[dtype_name(weight.dtype)],
        0 if bias is None else _FORMATS[dtype_name(bias.dtype)], ACTIVATIONS[activation],
    )  # fmt: skip


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    x, bias, residual = map(_packed, (x, bias, residual))
    outs = weight.shape[0]
    made = outs // 2 if activation in GATED else outs
    out = numpy.empty((*x.shape[:-1], made), numpy.float32)
    recorded, inner = grad_enabled(), None
    if recorded and activation is not None:
        inner = numpy.empty((*x.shape[:-1], outs), numpy.float32)
    fields = _fields(x, weight, bias, residual, inner, out, activation)
    _linear(outs * x.size, *fields)
    if not recorded:
        return out, None
    kept = x if needed(needs, 1) else None
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    return out, (kept, weight, bias_dtype, inner, residual)


def _packed(x: Any) -> Any:
    return x if x is None or x.flags.c_contiguous else numpy.ascontiguousarray(x)


def _plan(
    out: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    """The same product of whatever ``x`` holds by then."""
    given = (x, bias, residual, out)
    if not all(a is None or a.flags.c_contiguous for a in given):
        return None
    fields = _fields(x, weight, bias, residual, None, out, activation)
    return _linear.record((*given, weight), *fields)


linear.maker("cpu", _forward, backward, accepts=_accepts, plan=_plan)
