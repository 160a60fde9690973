"""Linear maps by the BLAS, the call chosen by the number of rows and the storage of the weight."""

import logging
from functools import partial
from typing import Any

import numpy

from ..backend import dtype_name, is_half
from ..core.graph import put_off
from ..core.op import OPS, needed
from ..core.tensor import grad_enabled
from ..ops import linear
from ..quantized import QuantizedMatrix
from . import threads
from .activation import ACTIVATIONS, PLANNED
from .buffers import column_sums, plain, rows_of
from .threads import row_parts, share

# The BLAS falls behind between one row and this many: rows of zeros make up the difference.
FEW_ROWS = 8
# The gradient of a weight is made in parts: so many at most, of so many rows and multiplications at least.
GRADIENT_PARTS, GRADIENT_ROWS, GRADIENT_WORK = 16, 64, 1 << 24
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


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    rows = rows_of(x)
    added = None if residual is None else rows_of(residual)
    dense = not isinstance(weight, QuantizedMatrix) and weight.dtype == x.dtype
    parts = row_parts(len(rows)) if dense else []
    if len(parts) > 1:
        inner, out = _shared(rows, weight, bias, added, activation, parts)
    else:
        inner, out = _whole(rows, weight, bias, added, activation)
    out = out.reshape(*x.shape[:-1], out.shape[-1])
    if not grad_enabled():
        return out, None
    inner = None if activation is None else inner.reshape(*x.shape[:-1], inner.shape[-1])
    kept = x if needed(needs, 1) else None
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    return out, (kept, weight, bias_dtype, inner, residual)


def _whole(rows: Any, weight: Any, bias: Any, added: Any, activation: str | None) -> Any:
    """What the activation has been applied to, and the result, (N, out) both."""
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
        _activate(activation, inner, out)
    if added is not None:
        out += added
    return inner, out


def _shared(
    rows: Any, weight: Any, bias: Any, added: Any, activation: str | None, parts: list[slice]
) -> Any:
    """The same, each part from the product to the end while it is in cache."""
    inner = numpy.empty((len(rows), weight.shape[0]), rows.dtype)
    out = inner if activation is None else _result(activation, inner)

    def one(part: slice) -> None:
        numpy.matmul(rows[part], weight.T, out=inner[part])
        if bias is not None:
            inner[part] += bias
        if activation is not None:
            _activate(activation, inner[part], out[part])
        if added is not None:
            out[part] += added[part]

    share(one, parts)
    return inner, out


def _result(activation: str, inner: Any) -> Any:
    """Where the activation of ``inner`` (N, C) goes."""
    own = ACTIVATIONS.get(activation)
    width = inner.shape[1] if own is None else own.width(inner.shape[1])
    return numpy.empty((len(inner), width), inner.dtype)


def _activate(activation: str, inner: Any, out: Any) -> None:
    own = ACTIVATIONS.get(activation)
    if own is not None:
        own.into(inner, out)
    else:
        out[...] = OPS[activation].reference(inner)[0]


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


def backward(residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None) -> Any:
    """The backward half, of what either forward has saved."""
    x, weight, bias_dtype, inner, residual = residuals
    blocked = isinstance(weight, QuantizedMatrix)
    if not blocked and weight.dtype != dout.dtype:
        return linear.differentiate(residuals, dout, activation=activation)
    before = dy = rows_of(dout)
    if activation is not None:
        inner = rows_of(inner)
        dy = numpy.empty(inner.shape, dout.dtype)
    dx = numpy.empty((len(dy), weight.shape[1]), dout.dtype)

    def one(part: slice) -> None:
        if activation is not None:
            _activation_gradient(activation, inner[part], before[part], dy[part])
        if not blocked:
            numpy.matmul(dy[part], weight, out=dx[part])

    share(one, row_parts(len(dy)))
    sums = _Sums(weight, dy, None if blocked or x is None else rows_of(x), bias_dtype)
    sums.make()
    if blocked:
        dx = _back_through_blocks(dy, weight)
    dx = dx.reshape(*dout.shape[:-1], weight.shape[1])
    dresidual = None if residual is None else dout.astype(residual.dtype, copy=False)
    return dx, sums.weight, sums.bias, dresidual


class _Sums:
    """The gradients of a weight, which lies in memory as the weight does, since an optimizer goes through
    both at once, and of a bias, where they are wanted: ``dy`` (N, out) is that of the product with ``rows``."""

    def __init__(self, weight: Any, dy: Any, rows: Any, bias_dtype: Any):
        self.dy, self.rows = dy, rows
        self.weight: Any = None
        self.bias: Any = None
        if rows is not None:
            self.by_row = weight.flags.c_contiguous
            self.weight = numpy.empty(weight.shape, rows.dtype, order="C" if self.by_row else "F")
        if bias_dtype is not None:
            self.bias = numpy.empty(weight.shape[0], bias_dtype)

    def make(self) -> None:
        """Fill both: later, in the midst of a backward, where nobody needs them yet."""
        found = [x for x in (self.weight, self.bias) if x is not None]
        if not found or put_off(found, self._begin, threads.settle):
            return
        if self._begin():  # with the BLAS's one thread as later: the same to the last bit
            threads.settle()
            return
        for part in self._parts():
            self._fill(part)

    def _begin(self) -> bool:
        nbytes = self.dy.nbytes + (0 if self.rows is None else self.rows.nbytes)
        return threads.put_off([partial(self._fill, part) for part in self._parts()], nbytes)

    def _parts(self) -> list[slice]:
        """Rows of the weight: enough for the BLAS, and little enough for threads to share to the end."""
        outs, width = self.dy.shape[1], 1 if self.weight is None else self.weight.shape[1]
        count = min(
            GRADIENT_PARTS, outs // GRADIENT_ROWS, -(-len(self.dy) * outs * width // GRADIENT_WORK)
        )
        step = -(-outs // max(1, count))
        return [slice(first, min(first + step, outs)) for first in range(0, outs, step)]

    def _fill(self, part: slice) -> None:
        dy = self.dy[:, part]
        if self.weight is not None:
            if self.by_row:
                numpy.matmul(dy.T, self.rows, out=self.weight[part])
            else:
                numpy.matmul(self.rows.T, dy, out=self.weight.T[:, part])
        if self.bias is not None:
            self.bias[part] = column_sums(dy)


def _back_through_blocks(dy: Any, weight: QuantizedMatrix) -> Any:
    dx = numpy.zeros((dy.shape[0], weight.shape[1]), dy.dtype)
    for places, wide in weight.decoded():
        dx += numpy.matmul(dy[:, places], wide.astype(dy.dtype, copy=False))
    return dx


def _activation_gradient(activation: str, inner: Any, dy: Any, dx: Any) -> None:
    own = ACTIVATIONS.get(activation)
    if own is not None:
        own.gradient_into(inner, dy, dx)
    else:
        dx[...] = OPS[activation].differentiate((inner,), dy)[0]


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


linear.maker("cpu", _forward, backward, accepts=_accepts, plan=_plan)
