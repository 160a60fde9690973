"""Layer and RMS normalization in blocks of rows, each read once from memory."""

import math
from typing import Any

import numpy

from ..core.tensor import grad_enabled
from ..ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .buffers import plain, row_blocks, rows_of


def _row_norms(rows: Any) -> Any:
    """The sum of squares of each row (N, 1)."""
    return numpy.einsum("nc,nc->n", rows, rows)[:, None]


def _layer(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    rows = rows_of(x)
    out = numpy.empty(rows.shape, x.dtype)
    mean = rows.mean(axis=1, keepdims=True)
    rstd = numpy.empty_like(mean)
    for part in row_blocks(*rows.shape):
        centred = numpy.subtract(rows[part], mean[part], out=out[part])
        rstd[part] = 1 / numpy.sqrt(_row_norms(centred) / rows.shape[1] + eps)
        centred *= rstd[part]
        centred *= weight
        centred += bias
    per_row = (*x.shape[:-1], 1)
    return out.reshape(x.shape), (x, weight, mean.reshape(per_row), rstd.reshape(per_row))


def _rms(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    width = x.shape[-1]
    if x.size == width:  # one token: scalars are quicker than arrays of one
        row = x.reshape(width)
        scale = 1 / math.sqrt(float(numpy.dot(row, row)) / width + eps)
        out = x * x.dtype.type(scale)
        out *= weight
        if not grad_enabled():
            return out, None
        return out, (x, weight, numpy.full((*x.shape[:-1], 1), scale, x.dtype))
    rows = rows_of(x)
    out = numpy.empty(rows.shape, x.dtype)
    rstd = numpy.empty((rows.shape[0], 1), x.dtype)
    for part in row_blocks(*rows.shape):
        rstd[part] = 1 / numpy.sqrt(_row_norms(rows[part]) / width + eps)
        scaled = numpy.multiply(rows[part], rstd[part], out=out[part])
        scaled *= weight
    return out.reshape(x.shape), (x, weight, rstd.reshape(*x.shape[:-1], 1))


def _add_layer(x: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    total = x + residual
    normed, residuals = _layer(total, weight, bias, eps=eps)
    return (total, normed), residuals


def _add_rms(x: Any, residual: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    total = x + residual
    normed, residuals = _rms(total, weight, eps=eps)
    return (total, normed), residuals


def _accepts(*arrays: Any, eps: float = 0.0) -> bool:
    return plain(*arrays)


def _plan_rms(out: Any, x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """The norm of one token, ready to repeat."""
    if x.size != x.shape[-1]:
        return None
    row, place, kind = x.reshape(-1), out.reshape(-1), x.dtype.type
    width = len(row)

    def run(position: int) -> None:
        scale = 1 / math.sqrt(float(numpy.dot(row, row)) / width + eps)
        numpy.multiply(row, kind(scale), out=place)
        numpy.multiply(place, weight, out=place)

    return run


def _plan_layer(out: Any, x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """The norm of one token, ready to repeat."""
    if x.size != x.shape[-1]:
        return None
    row, place, kind = x.reshape(-1), out.reshape(-1), x.dtype.type
    width = len(row)

    def run(position: int) -> None:
        numpy.subtract(row, kind(row.mean()), out=place)
        scale = 1 / math.sqrt(float(numpy.dot(place, place)) / width + eps)
        numpy.multiply(place, kind(scale), out=place)
        numpy.multiply(place, weight, out=place)
        numpy.add(place, bias, out=place)

    return run


layer_norm.maker("cpu", _layer, accepts=_accepts, plan=_plan_layer)
rms_norm.maker("cpu", _rms, accepts=_accepts, plan=_plan_rms)
add_layer_norm.maker("cpu", _add_layer, accepts=_accepts)
add_rms_norm.maker("cpu", _add_rms, accepts=_accepts)
