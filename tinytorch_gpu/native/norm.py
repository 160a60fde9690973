"""Layer and RMS norm by the library (kernels/cpu/norm.cpp), of states in float32."""

from collections.abc import Callable
from typing import Any

import numpy

from ..backend import dtype_name, narrow, widen
from ..core.tensor import grad_enabled
from ..ops import add_layer_norm, add_rms_norm, layer_norm, norm_heads, rms_norm
from ..ops.norm import heads_gradient, normed_heads
from .blocks import FORMATS, PLAIN
from .library import Operation, Record, packed, pointer

# x, residual, weight, bias, total, out, mean, rstd; rows, width, format; eps
_norm = Operation("norm", "8P3qd")
# x, weight, mean, rstd, dy, dtotal, dx, sums, dweight, dbias; rows, width
_norm_back = Operation("norm_backward", "10P2q")
# x, weights of queries and keys, out, rstd; tokens, heads, key heads, width, format; eps
_norm_heads = Operation("norm_heads", "5P5qd")
_PART = 32  # of kernels/cpu/norm.cpp


def _fits(states: Any, parameters: Any) -> bool:
    """Whether the library takes states (..., C) and parameters (C,)."""
    x, weight = states[0], parameters[0]
    if dtype_name(weight.dtype) not in PLAIN or not x.size:
        return False
    return all(s.dtype == numpy.float32 and s.shape == x.shape for s in states) and all(
        p.dtype == weight.dtype and p.shape == x.shape[-1:] and p.flags.c_contiguous
        for p in parameters
    )


def _fields(
    x: Any, residual: Any, weight: Any, bias: Any, total: Any, out: Any, statistics: Any, eps: float
) -> Any:
    width = x.shape[-1]
    arrays = (x, residual, weight, bias, total, out, *statistics)
    form = FORMATS[dtype_name(weight.dtype)]
    return (*map(pointer, arrays), x.size // width, width, form, eps)


def _norm_of(x: Any, residual: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """The sum (x itself without a residual), its norm, and what a backward needs."""
    given, x, residual = x, packed(x), packed(residual)
    out, total = numpy.empty(x.shape, x.dtype), None
    if residual is not None:
        total = numpy.empty_like(out)
    statistics: list[Any] = [None, None]
    if grad_enabled():
        statistics = [numpy.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2)]
    _norm(x.size, *_fields(x, residual, weight, bias, total, out, statistics, eps))
    total = given if total is None else total
    kept = statistics if bias is not None else statistics[1:]
    return total, out, (total, weight, *kept) if grad_enabled() else None


def _layer(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    return _norm_of(x, None, weight, bias, eps)[1:]


def _rms(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    return _norm_of(x, None, weight, None, eps)[1:]


def _add_layer(x: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    total, out, kept = _norm_of(x, residual, weight, bias, eps)
    return (total, out), kept


def _add_rms(x: Any, residual: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    total, out, kept = _norm_of(x, residual, weight, None, eps)
    return (total, out), kept


def _back(residuals: Any, dout: Any, dtotal: Any) -> tuple[Any, ...]:
    """The gradients of x, weight and bias, the latter None for the RMS norm."""
    x, weight, *statistics = residuals
    statistics = list(map(packed, statistics))
    mean, rstd = statistics if len(statistics) == 2 else (None, *statistics)
    width = x.shape[-1]
    rows = x.size // width
    dx, sums = numpy.empty(x.shape, x.dtype), numpy.empty((-(-rows // _PART), 2, width), x.dtype)
    dweight, dbias = (
        numpy.empty(width, x.dtype),
        None if mean is None else numpy.empty(width, x.dtype),
    )
    wide = widen(weight)
    given = (packed(x), wide, mean, rstd, packed(dout), packed(dtotal), dx, sums, dweight, dbias)
    _norm_back(4 * x.size, *map(pointer, given), rows, width)
    return dx, *(None if d is None else narrow(d, weight.dtype) for d in (dweight, dbias))


def _layer_backward(residuals: Any, dout: Any, *, eps: float = 1e-5) -> Any:
    return _back(residuals, dout, None)


def _rms_backward(residuals: Any, dout: Any, *, eps: float = 1e-6) -> Any:
    return _back(residuals, dout, None)[:2]


def _add_layer_backward(residuals: Any, dtotal: Any, dout: Any, *, eps: float = 1e-5) -> Any:
    dx, *rest = _back(residuals, dout, dtotal)
    return dx, dx, *rest


def _add_rms_backward(residuals: Any, dtotal: Any, dout: Any, *, eps: float = 1e-6) -> Any:
    dx, dweight, _ = _back(residuals, dout, dtotal)
    return dx, dx, dweight


def _takes(states: int) -> Callable[..., bool]:
    """``accepts`` for an operation whose first so many arguments are states."""

    def accepts(*arrays: Any, eps: float = 0.0) -> bool:
        return _fits(arrays[:states], arrays[states:])

    return accepts


def _planner(states: int, usual: float) -> Callable[..., Record | None]:
    """``plan`` for the same: the norm of whatever the states hold by then."""

    def plan(result: Any, *arrays: Any, eps: float = usual) -> Record | None:
        total, out = result if states == 2 else (None, result)
        given = arrays[:states]
        if not all(a.flags.c_contiguous for a in given):
            return None
        x, residual = given if states == 2 else (*given, None)
        weight, bias = (*arrays[states:], None)[:2]
        fields = _fields(x, residual, weight, bias, total, out, (None, None), eps)
        return _norm.record((arrays, result), *fields)

    return plan


def _heads_fields(
    out: Any, x: Any, q_weight: Any, k_weight: Any, rstd: Any, heads: int, eps: float
) -> Any:
    arrays, width = (x, q_weight, k_weight, out, rstd), x.shape[3]
    sizes = (x.shape[0] * x.shape[1], heads, normed_heads(x, heads) - heads, width)
    return (*map(pointer, arrays), *sizes, FORMATS[dtype_name(q_weight.dtype)], eps)


def _heads(x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6) -> Any:
    x, out, rstd = packed(x), numpy.empty(x.shape, x.dtype), None
    if grad_enabled():
        rstd = numpy.empty((*x.shape[:2], normed_heads(x, heads), 1), x.dtype)
    _norm_heads(x.size, *_heads_fields(out, x, q_weight, k_weight, rstd, heads, eps))
    return out, (x, q_weight, k_weight, rstd) if grad_enabled() else None


def _heads_backward(residuals: Any, dout: Any, *, heads: int, eps: float = 1e-6) -> Any:
    return heads_gradient(_rms_backward, residuals, dout, heads)


def _accepts_heads(x: Any, *weights: Any, heads: int, eps: float = 0.0) -> bool:
    return _fits((x,), weights) and 0 < heads < x.shape[2] > normed_heads(x, heads)


def _plan_heads(
    out: Any, x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6
) -> Record | None:
    """The same of whatever x holds by then."""
    if not x.flags.c_contiguous:
        return None
    fields = _heads_fields(out, x, q_weight, k_weight, None, heads, eps)
    return _norm_heads.record((out, x, q_weight, k_weight), *fields)


norm_heads.maker("cpu", _heads, _heads_backward, _accepts_heads, _plan_heads, ahead=True)

for _op, _states, _eps, _forward, _backward in (
    (layer_norm, 1, 1e-5, _layer, _layer_backward),
    (rms_norm, 1, 1e-6, _rms, _rms_backward),
    (add_layer_norm, 2, 1e-5, _add_layer, _add_layer_backward),
    (add_rms_norm, 2, 1e-6, _add_rms, _add_rms_backward),
):
    _op.maker("cpu", _forward, _backward, _takes(_states), _planner(_states, _eps), ahead=True)
