"""Rows of a table by the library (kernels/cpu/embedding.cpp), whatever it is stored in."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..ops import embedding
from ..quantized import Format, QuantizedMatrix
from .blocks import FORMATS, LAYOUT, PLAIN
from .library import Operation, Record, packed, pointer

# ids, table, out; count, width, format, interleaved; scale
_embedding = Operation("embedding", "3P4qd")
# ids, order, dout, gradient; count, width, format; scale
_backward = Operation("embedding_backward", "4P3qd")


def _table(weight: Any) -> tuple[Any, str, bool]:
    """The bytes of a table, their format, and whether they are interleaved."""
    if isinstance(weight, QuantizedMatrix):
        part = weight.parts[0]
        return part.data, part.format.name, part.layout == LAYOUT
    return weight, dtype_name(weight.dtype), False


def _accepts(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> bool:
    blocked = isinstance(weight, QuantizedMatrix)
    if (dtype is not None or not blocked) and dtype_name(dtype or weight.dtype) != "float32":
        return False
    if "int" not in ids.dtype.name or not weight.shape[1]:
        return False
    if not blocked:
        return dtype_name(weight.dtype) in PLAIN and weight.flags.c_contiguous
    part = weight.parts[0]
    usual = part.layout in ("rows", LAYOUT) and part.format.name in FORMATS
    return usual and len(weight.parts) == 1 and not weight.turned and part.data.flags.c_contiguous


def _fields(ids: Any, weight: Any, out: Any, scale: float) -> tuple[Any, Any]:
    table, form, interleaved = _table(weight)
    pointers = map(pointer, (ids, table, out))
    return (ids, table, out), (
        *pointers, ids.size, weight.shape[1], FORMATS[form], interleaved, scale,
    )  # fmt: skip


def _forward(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    rows, wanted = weight.shape[0], packed(ids.astype(numpy.int64, copy=False))
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < rows):
        raise IndexError(f"ids from {wanted.min()} to {wanted.max()} of a table of {rows} rows")
    out = numpy.empty((*ids.shape, weight.shape[1]), numpy.float32)
    _alive, fields = _fields(wanted, weight, out, scale)
    _embedding(out.size, *fields)
    return out, (ids, rows, weight.dtype)


def _gradient(
    residuals: Any, dout: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    ids, rows, weight_dtype = residuals
    if isinstance(weight_dtype, Format):
        return None, None
    wanted, dout = packed(ids.reshape(-1).astype(numpy.int64, copy=False)), packed(dout)
    order = numpy.argsort(wanted, kind="stable")
    gradient = numpy.zeros((rows, dout.shape[-1]), weight_dtype)
    pointers = map(pointer, (wanted, order, dout, gradient))
    _backward(
        dout.size, *pointers, ids.size, dout.shape[-1], FORMATS[dtype_name(weight_dtype)], scale
    )
    if padding is not None:
        gradient[padding] = 0
    return None, gradient


def _plan(
    out: Any, ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None,
    scale: float = 1.0,
) -> Record | None:  # fmt: skip
    """The rows of whatever ``ids`` holds by then, in range."""
    if ids.dtype != numpy.int64 or not ids.flags.c_contiguous:
        return None
    alive, fields = _fields(ids, weight, out, scale)
    return _embedding.record(alive, *fields)


embedding.maker("cpu", _forward, _gradient, accepts=_accepts, plan=_plan, ahead=True)
