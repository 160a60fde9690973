"""Rows of a table by number."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op
from ..special import scatter_add


@op
def embedding(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    """Row ``ids`` (...) of ``weight`` (V, C): gives (..., C) in ``dtype`` (the weight's if None).

    The row ``padding`` gets no gradient. The caller has checked that the ids are in range.
    """
    xp = namespace(weight)
    rows = xp.take(weight, xp.reshape(ids, (-1,)), axis=0)
    rows = widen(rows) if scale == 1.0 else widen(rows) * scale
    out = narrow(rows, weight.dtype if dtype is None else dtype)
    return xp.reshape(out, (*ids.shape, weight.shape[1])), (ids, weight.shape[0], weight.dtype)


@embedding.backward
def _(
    residuals: Any, dout: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    ids, rows, weight_dtype = residuals
    xp = namespace(dout)
    values = widen(xp.reshape(dout, (-1, dout.shape[-1]))) * scale
    gradient = scatter_add(rows, xp.reshape(ids, (-1,)), values)
    if padding is not None:
        gradient[padding, :] = 0
    return None, narrow(gradient, weight_dtype)
