"""The gradients of linear maps by the BLAS; those of weights are put off until a thread is free."""

from functools import partial
from typing import Any

import numpy

from ..core.graph import put_off
from ..core.op import OPS
from ..ops import linear
from ..ops.activation import Slope
from ..quantized import QuantizedMatrix
from . import threads
from .activation import ACTIVATIONS
from .buffers import column_sums, row_blocks, rows_of
from .threads import row_parts, share, split, unequal

# The gradient of a weight is made in parts: so many at most, of so many rows and multiplications at least.
GRADIENT_PARTS, GRADIENT_ROWS, GRADIENT_WORK = 16, 64, 1 << 24


def backward(residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None) -> Any:
    """The backward half, of what either forward has saved."""
    x, weight, bias_dtype, saved, residual = residuals
    blocked = isinstance(weight, QuantizedMatrix)
    if not blocked and weight.dtype != dout.dtype:
        return linear.differentiate(residuals, dout, activation=activation)
    before = dy = rows_of(dout)
    slope = isinstance(saved, Slope)
    if activation is not None:
        saved = rows_of(saved.values if slope else saved)
        dy = numpy.empty(saved.shape, dout.dtype)
    dx = numpy.empty((len(dy), weight.shape[1]), dout.dtype)

    def one(part: slice) -> None:
        if slope:
            numpy.multiply(saved[part], before[part], out=dy[part])
        elif activation is not None:
            _activation_gradient(activation, saved[part], before[part], dy[part])
        if not blocked:
            numpy.matmul(dy[part], weight, out=dx[part])

    sums = _Sums(weight, dy, None if blocked or x is None else rows_of(x), bias_dtype)
    if activation is None:  # else their dy is not there yet
        sums.make()
    share(one, row_parts(len(dy), split if sums.weight is None else unequal))
    if activation is not None:
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
        for part in row_blocks(*inner.shape):
            dx[part] = OPS[activation].differentiate((inner[part],), dy[part])[0]
