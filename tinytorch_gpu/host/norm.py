"""Layer and RMS normalization in blocks of rows, each read once from memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy

from ..core.tensor import grad_enabled
from ..ops import add_layer_norm, add_rms_norm, layer_norm, norm_heads, rms_norm
from ..ops.norm import heads_gradient, normed_heads
from .buffers import column_sums, plain, row_blocks, rows_of
from .chain import follow
from .threads import row_parts, share


def _parts(rows: Any) -> list[slice]:
    """Blocks for threads to share, or all rows where those would be but two short ones."""
    blocks = list(row_blocks(*rows.shape))
    return blocks if len(blocks) > 2 else [slice(0, len(rows))]


def _blockwise(work: Callable[[slice], None], width: int) -> Callable[[slice], None]:
    """``work`` on rows of ``width`` in blocks that stay in cache."""

    def blocks(part: slice) -> None:
        for block in row_blocks(part.stop - part.start, width):
            work(slice(part.start + block.start, part.start + block.stop))

    return blocks


def _joins(x: Any, *weights: Any, **options: Any) -> bool:
    # Other rows would be copied, and one row is looked at at once.
    return x.flags.c_contiguous and x.size != x.shape[-1]


def _row_norms(rows: Any) -> Any:
    """The sum of squares of each row (N, 1)."""
    return numpy.vecdot(rows, rows)[:, None]


def _layer(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    rows = rows_of(x)
    count, width = rows.shape
    # Sums by dot products of rows: a product would wake threads of the BLAS, which go on turning for a while.
    out, ones = numpy.empty(rows.shape, x.dtype), numpy.ones(width, x.dtype)
    mean, rstd = numpy.empty((2, count, 1), x.dtype)

    def one(part: slice) -> None:
        numpy.divide(numpy.vecdot(rows[part], ones)[:, None], width, out=mean[part])
        centred = numpy.subtract(rows[part], mean[part], out=out[part])
        rstd[part] = 1 / numpy.sqrt(_row_norms(centred) / width + eps)
        centred *= rstd[part]
        centred *= weight
        centred += bias

    follow(_blockwise(one, width), row_parts(count), (out,))
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

    def one(part: slice) -> None:
        rstd[part] = 1 / numpy.sqrt(_row_norms(rows[part]) / width + eps)
        scaled = numpy.multiply(rows[part], rstd[part], out=out[part])
        scaled *= weight

    follow(_blockwise(one, width), row_parts(len(rows)), (out,))
    return out.reshape(x.shape), (x, weight, rstd.reshape(*x.shape[:-1], 1))


def _add_layer(x: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    total = x + residual
    normed, residuals = _layer(total, weight, bias, eps=eps)
    return (total, normed), residuals


def _add_rms(x: Any, residual: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    total = x + residual
    normed, residuals = _rms(total, weight, eps=eps)
    return (total, normed), residuals


def layer_backward(residuals: Any, dout: Any, *, eps: float = 1e-5) -> Any:
    x, weight, mean, rstd = residuals
    rows, dy, mean, rstd = rows_of(x), rows_of(dout), mean.reshape(-1, 1), rstd.reshape(-1, 1)
    dx, to_mean = numpy.empty(rows.shape, x.dtype), _to_mean(weight)
    parts, sums = _parts(rows), {}

    def one(part: slice) -> None:
        scale, given = rstd[part], dy[part]
        centred = numpy.subtract(rows[part], mean[part])
        product = given * centred
        sums[part.start] = scale[:, 0] @ product, column_sums(given)
        change = numpy.multiply(given, weight, out=dx[part])
        change -= given @ to_mean
        centred *= (product @ to_mean) * (scale * scale)
        change -= centred
        change *= scale

    share(one, parts)
    return dx.reshape(x.shape), *_total([sums[part.start] for part in parts])


def rms_backward(residuals: Any, dout: Any, *, eps: float = 1e-6) -> Any:
    x, weight, rstd = residuals
    rows, dy, rstd = rows_of(x), rows_of(dout), rstd.reshape(-1, 1)
    dx, to_mean = numpy.empty(rows.shape, x.dtype), _to_mean(weight)
    parts, sums = _parts(rows), {}

    def one(part: slice) -> None:
        scale, given = rstd[part], dy[part]
        normed = rows[part] * scale
        product = given * normed
        sums[part.start] = (column_sums(product),)
        change = numpy.multiply(given, weight, out=dx[part])
        normed *= product @ to_mean
        change -= normed
        change *= scale

    share(one, parts)
    return dx.reshape(x.shape), *_total([sums[part.start] for part in parts])


def _to_mean(weight: Any) -> Any:
    """What makes rows (N, C) the means (N, 1) of their products with a weight (C,)."""
    return (weight / max(len(weight), 1))[:, None]


def _total(sums: list[Any]) -> Any:
    """The gradients that parts have found, added."""
    return sums[0] if len(sums) == 1 else [sum(found) for found in zip(*sums, strict=True)]


def add_layer_backward(residuals: Any, dtotal: Any, dout: Any, *, eps: float = 1e-5) -> Any:
    dx, dweight, dbias = layer_backward(residuals, dout)
    dx += dtotal
    return dx, dx, dweight, dbias


def add_rms_backward(residuals: Any, dtotal: Any, dout: Any, *, eps: float = 1e-6) -> Any:
    dx, dweight = rms_backward(residuals, dout)
    dx += dtotal
    return dx, dx, dweight


def _heads(x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6) -> Any:
    count, out = normed_heads(x, heads), x.copy()
    normed = out[:, :, :count]
    rstd = 1 / numpy.sqrt(numpy.vecdot(normed, normed)[..., None] / x.shape[3] + eps)
    normed *= rstd
    normed[:, :, :heads] *= q_weight
    normed[:, :, heads:] *= k_weight
    return out, (x, q_weight, k_weight, rstd)


def _heads_backward(residuals: Any, dout: Any, *, heads: int, eps: float = 1e-6) -> Any:
    return heads_gradient(rms_backward, residuals, dout, heads)


def _accepts(*arrays: Any, eps: float = 0.0) -> bool:
    return plain(*arrays)


def _accepts_heads(x: Any, *weights: Any, heads: int, eps: float = 0.0) -> bool:
    return plain(x, *weights)


def _plan_rms(out: Any, x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """The norm of one token, ready to repeat."""
    if x.size != x.shape[-1]:
        return None
    row, place, kind = x.reshape(-1), out.reshape(-1), x.dtype.type
    width = len(row)

    def run() -> None:
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

    def run() -> None:
        numpy.subtract(row, kind(row.mean()), out=place)
        scale = 1 / math.sqrt(float(numpy.dot(place, place)) / width + eps)
        numpy.multiply(place, kind(scale), out=place)
        numpy.multiply(place, weight, out=place)
        numpy.add(place, bias, out=place)

    return run


def _plan_heads(
    out: Any, x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6
) -> Any:
    """The norm of one token's heads, ready to repeat."""
    if x.shape[0] * x.shape[1] != 1:
        return None
    token, place, count, width = x[0, 0], out[0, 0], normed_heads(x, heads), x.shape[3]
    given, normed, queries, keys = token[:count], place[:count], place[:heads], place[heads:count]
    scale = numpy.empty((count, 1), x.dtype)

    def run() -> None:
        numpy.vecdot(given, given, out=scale[:, 0])
        numpy.divide(scale, width, out=scale)
        numpy.add(scale, eps, out=scale)
        numpy.sqrt(scale, out=scale)
        numpy.divide(given, scale, out=normed)
        numpy.multiply(queries, q_weight, out=queries)
        numpy.multiply(keys, k_weight, out=keys)
        place[count:] = token[count:]

    return run


layer_norm.maker("cpu", _layer, layer_backward, _accepts, _plan_layer, _joins)
rms_norm.maker("cpu", _rms, rms_backward, _accepts, _plan_rms, _joins)
add_layer_norm.maker("cpu", _add_layer, add_layer_backward, accepts=_accepts)
add_rms_norm.maker("cpu", _add_rms, add_rms_backward, accepts=_accepts)
norm_heads.maker("cpu", _heads, _heads_backward, accepts=_accepts_heads, plan=_plan_heads)
