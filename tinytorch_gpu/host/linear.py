"""Linear maps by the BLAS, the call chosen by the number of rows and the storage of the weight."""

import logging
from typing import Any

import numpy

from ..backend import dtype_name, is_half
from ..core.deferred import ready
from ..core.op import OPS, needed
from ..core.tensor import grad_enabled
from ..ops import linear
from ..ops.activation import Slope
from ..quantized import QuantizedMatrix
from .activation import ACTIVATIONS, PLANNED, SLOPED
from .buffers import plain, row_blocks, rows_of
from .chain import follow
from .linear_backward import backward
from .threads import row_parts

# The BLAS falls behind between one row and this many: rows of zeros make up the difference.
FEW_ROWS = 8
# A 16-bit weight is widened this many values at a time, into one buffer.
WIDENED = 1 << 18

_log = logging.getLogger(__name__)
_warned = False


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> bool:  # fmt: skip
    if isinstance(weight, QuantizedMatrix):
        return plain(x)
    return plain(x) and (weight.dtype == x.dtype or (is_half(weight) and x.dtype == numpy.float32))


def _joins(x: Any, weight: Any, bias: Any = None, residual: Any = None, **options: Any) -> bool:
    # Other rows would be copied.
    return all(given is None or given.flags.c_contiguous for given in (x, residual))


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    rows = rows_of(x)
    added = None if residual is None else rows_of(residual)
    dense = not isinstance(weight, QuantizedMatrix) and weight.dtype == x.dtype
    parts = row_parts(len(rows)) if dense else []
    sloped = grad_enabled() and activation in SLOPED
    if len(parts) > 1:
        inner, out = _shared(rows, weight, bias, added, activation, sloped, parts)
    else:
        ready()
        inner, out = _whole(rows, weight, bias, added, activation, sloped)
    out = out.reshape(*x.shape[:-1], out.shape[-1])
    if not grad_enabled():
        return out, None
    saved = None if activation is None else inner.reshape(*x.shape[:-1], inner.shape[-1])
    saved = Slope(saved) if sloped else saved
    kept = x if needed(needs, 1) else None
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    return out, (kept, weight, bias_dtype, saved, residual)


def _whole(
    rows: Any, weight: Any, bias: Any, added: Any, activation: str | None, sloped: bool
) -> Any:
    """What the activation has been applied to, or its slope if ``sloped``, and the result, (N, out) both."""
    if isinstance(weight, QuantizedMatrix):
        inner = _product_of_blocks(rows, weight)
    elif weight.dtype == rows.dtype:
        inner = _product(rows, weight)
    else:
        inner = _product_of_half(rows, weight)
    if bias is not None:
        inner += bias
    out = inner
    if activation is not None:
        out = _result(activation, inner)
        _activate(activation, inner, out, sloped)
    if added is not None:
        out += added
    return inner, out


def _shared(
    rows: Any, weight: Any, bias: Any, added: Any, activation: str | None, sloped: bool,
    parts: list[slice],
) -> Any:  # fmt: skip
    """The same, each part from the product to the end while it is in cache."""
    inner = numpy.empty((len(rows), weight.shape[0]), rows.dtype)
    out = inner if activation is None else _result(activation, inner)

    def one(part: slice) -> None:
        numpy.matmul(rows[part], weight.T, out=inner[part])
        if bias is not None:
            inner[part] += bias
        if activation is not None:
            _activate(activation, inner[part], out[part], sloped)
        if added is not None:
            out[part] += added[part]

    follow(one, parts, (inner,) if out is inner else (inner, out))
    return inner, out


def _result(activation: str, inner: Any) -> Any:
    """Where the activation of ``inner`` (N, C) goes."""
    own = ACTIVATIONS.get(activation)
    width = inner.shape[1] if own is None else own.width(inner.shape[1])
    return numpy.empty((len(inner), width), inner.dtype)


def _activate(activation: str, inner: Any, out: Any, sloped: bool) -> None:
    own = ACTIVATIONS.get(activation)
    if own is not None and sloped:
        own.with_slope_into(inner, out, inner)
    elif own is not None:
        own.into(inner, out)
    else:
        for part in row_blocks(*inner.shape):
            out[part] = OPS[activation].reference(inner[part])[0]


def _product(rows: Any, weight: Any) -> Any:
    """(N, in) times a weight (out, in) of the same dtype: (N, out)."""
    count = rows.shape[0]
    if count == 1:
        # A matrix times a vector: along the weight's memory, whichever way round it lies.
        if weight.flags.c_contiguous:
            return numpy.dot(weight, rows[0])[None]
        return numpy.dot(rows[0], weight.T)[None]
    if count < FEW_ROWS:
        padded = numpy.zeros((FEW_ROWS, rows.shape[1]), rows.dtype)
        padded[:count] = rows
        return numpy.matmul(padded, weight.T)[:count]
    return numpy.matmul(rows, weight.T)


def _product_of_half(rows: Any, weight: Any) -> Any:
    """The same for a 16-bit weight, widened block by block: it never exists in 32 bits."""
    _warn_once(weight)
    out = numpy.empty((rows.shape[0], weight.shape[0]), numpy.float32)
    step = max(1, WIDENED // weight.shape[1])
    buffer = numpy.empty((step, weight.shape[1]), numpy.float32)
    for start in range(0, weight.shape[0], step):
        block = weight[start : start + step]
        wide = buffer[: len(block)]
        widen_into(wide, block)
        out[:, start : start + step] = _product(rows, wide)
    return out


def _product_of_blocks(rows: Any, weight: QuantizedMatrix) -> Any:
    """The same for a weight in blocks, decoded a cache's worth at a time."""
    out = numpy.empty((rows.shape[0], weight.shape[0]), rows.dtype)
    for places, wide in weight.decoded():
        out[:, places] = _product(rows, wide.astype(rows.dtype, copy=False))
    return out


def widen_into(wide: Any, half: Any) -> None:
    """Write a 16-bit array into a float32 one."""
    if dtype_name(half.dtype) == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        numpy.left_shift(
            half.view(numpy.uint16), 16, out=wide.view(numpy.uint32), dtype=numpy.uint32
        )
    else:
        numpy.copyto(wide, half)


def _warn_once(weight: Any) -> None:
    global _warned
    if not _warned:
        _warned = True
        _log.warning(
            "%s weights are kept in 16 bit and computed in float32 on the CPU: half the memory, "
            "but slower than float32",
            dtype_name(weight.dtype),
        )


def _vector_product(a: Any, b: Any, out: Any) -> None:
    numpy.dot(a, b, out=out)


def _vector_times_blocks(weight: QuantizedMatrix, row: Any, out: Any) -> None:
    for places, wide in weight.decoded():
        numpy.dot(wide.astype(row.dtype, copy=False), row, out=out[places])


def _plan(
    out: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    """The product of one token, ready to repeat."""
    gated = activation in PLANNED
    blocked = isinstance(weight, QuantizedMatrix)
    if x.size != weight.shape[1] or not (blocked or weight.dtype == x.dtype):
        return None
    if not (activation is None or gated):
        return None
    row, place = x.reshape(-1), out.reshape(-1)
    inner = place if activation is None else numpy.empty(weight.shape[0], x.dtype)
    if blocked:
        multiply: Any = _vector_times_blocks
        pair = (weight, row)
    else:
        multiply = _vector_product
        pair = (weight, row) if weight.flags.c_contiguous else (row, weight.T)
    activate = None if activation is None else PLANNED[activation](inner, place)
    added = None if residual is None else residual.reshape(-1)

    def run() -> None:
        multiply(*pair, inner)
        if bias is not None:
            numpy.add(inner, bias, out=inner)
        if activate is not None:
            activate()
        if added is not None:
            numpy.add(place, added, out=place)

    return run


linear.maker("cpu", _forward, backward, accepts=_accepts, plan=_plan, joins=_joins)
