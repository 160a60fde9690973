"""Embedding rows from a table stored either way round."""

from typing import Any

import numpy

from ..backend import is_half
from ..devices import device
from ..ops import embedding
from .buffers import plain, rows_of
from .linear import widen_into


def _forward(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    # numpy.take would first copy a table stored by columns into one stored by rows.
    rows = weight[ids]
    wanted = weight.dtype if dtype is None else dtype
    if is_half(rows) and wanted == numpy.float32:
        out = numpy.empty(rows.shape, numpy.float32)
        widen_into(out, rows)
    else:
        out = numpy.ascontiguousarray(rows, dtype=wanted)
    if scale != 1.0:
        out = out * numpy.asarray(scale, out.dtype)
    return out, (ids, weight.shape[0], weight.dtype)


def backward(
    residuals: Any, dout: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    ids, rows, weight_dtype = residuals
    if not plain(dout) or dout.dtype != weight_dtype:
        return embedding.differentiate(residuals, dout, dtype=dtype, padding=padding, scale=scale)
    ids, values = ids.reshape(-1), rows_of(dout)
    # The gradient lies in memory as tables of its shape do: the head's, if tied, is added to it.
    order: Any = device("cpu").weight_order(rows, values.shape[1], weight_dtype)
    gradient = numpy.zeros((rows, values.shape[1]), weight_dtype, order=order)
    if ids.size:
        if not (ids[1:] > ids[:-1]).all():  # else they are rows by themselves, as positions are
            ids, values = _sums_by_id(ids, values)
        gradient[ids] = values if scale == 1.0 else values * values.dtype.type(scale)
    if padding is not None:
        gradient[padding] = 0
    return None, gradient


def _sums_by_id(ids: Any, values: Any) -> tuple[Any, Any]:
    """Each of the ids (N,) once, in order, and the sum of its values (N, C)."""
    order = numpy.argsort(ids, kind="stable")
    ids = ids[order]
    first = numpy.ones(len(ids), bool)
    numpy.not_equal(ids[1:], ids[:-1], out=first[1:])
    starts = numpy.flatnonzero(first)
    return ids[starts], numpy.add.reduceat(values[order], starts, axis=0)


def _plan(out: Any, ids: Any, *rest: Any, **options: Any) -> Any:
    """The same look-up of whatever ``ids`` holds by then."""

    def run() -> None:
        out[...] = _forward(ids, *rest, **options)[0]

    return run


def _accepts(ids: Any, weight: Any, **options: Any) -> bool:
    return isinstance(weight, numpy.ndarray)


embedding.maker("cpu", _forward, backward, _accepts, plan=_plan)
