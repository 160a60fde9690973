"""Rows of a table by number."""

from typing import Any

from ..backend import namespace, narrow, to_numpy, widen
from ..core.op import op
from ..quantized import Format, QuantizedMatrix
from ..special import scatter_add


@op
def embedding(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    """Row ``ids`` (...) of ``weight`` (V, C): gives (..., C) in ``dtype`` (the weight's if None).

    The row ``padding`` gets no gradient. A QuantizedMatrix gives float32 if ``dtype`` is None, and gets
    no gradient. The caller has checked that the ids are in range.
    """
    xp, blocked = namespace(ids), isinstance(weight, QuantizedMatrix)
    flat = xp.reshape(ids, (-1,))
    rows = xp.asarray(weight.take(to_numpy(flat))) if blocked else xp.take(weight, flat, axis=0)
    rows = widen(rows) if scale == 1.0 else widen(rows) * scale
    out = narrow(rows, dtype or (rows.dtype if blocked else weight.dtype))
    return xp.reshape(out, (*ids.shape, weight.shape[1])), (ids, weight.shape[0], weight.dtype)


@embedding.backward
def _(
    residuals: Any, dout: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    ids, rows, weight_dtype = residuals
    if isinstance(weight_dtype, Format):
        return None, None
    xp = namespace(dout)
    values = widen(xp.reshape(dout, (-1, dout.shape[-1]))) * scale
    gradient = scatter_add(rows, xp.reshape(ids, (-1,)), values)
    if padding is not None:
        gradient[padding, :] = 0
    return None, narrow(gradient, weight_dtype)
