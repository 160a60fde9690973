"""Embedding rows from a table stored either way round."""

from typing import Any

import numpy

from ..backend import is_half
from ..ops import embedding
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


def _plan(out: Any, ids: Any, *rest: Any, **options: Any) -> Any:
    """The same look-up of whatever ``ids`` holds by then."""

    def run(position: int) -> None:
        out[...] = _forward(ids, *rest, **options)[0]

    return run


embedding.maker("cpu", _forward, plan=_plan)
