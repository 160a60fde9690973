"""Matrix products: the linear map of a layer, and ``@``."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import OPS, needed, op
from ..quantized import QuantizedMatrix
from .activation import Slope
from .elementwise import unbroadcast


@op
def linear(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    """``activation(x @ weight.T + bias) + residual``: (..., in) with weight (out, in) gives (..., out).

    ``activation`` names one of this package's (the gated ones halve the width); ``residual`` has
    the shape of the result. The weight may lie in memory either way round and may be stored in 16
    bits under a wider ``x``, or be a QuantizedMatrix, which gets no gradient; the product is
    accumulated in float32 or wider, and the result has the dtype of ``x``. A weight that needs no
    gradient keeps no ``x`` for it. A maker may save the ``Slope`` of the activation for what it was applied to.
    """
    inner = namespace(x).matmul(widen(x), widen(weight).T)
    if bias is not None:
        inner = inner + widen(bias)
    out = inner if activation is None else OPS[activation].reference(inner)[0]
    if residual is not None:
        out = out + widen(residual)
    saved = None if activation is None else narrow(inner, x.dtype)
    kept = x if needed(needs, 1) else None
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    return narrow(out, x.dtype), (kept, weight, bias_dtype, saved, residual)


@linear.backward
def _(residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None) -> Any:
    x, weight, bias_dtype, saved, residual = residuals
    xp = namespace(dout)
    dy = widen(dout)
    if activation is not None:
        if isinstance(saved, Slope):
            dy = dy * widen(saved.values)
        else:
            (dy,) = OPS[activation].differentiate((widen(saved),), dy)
    dx = xp.matmul(dy, widen(weight))
    rows, dweight = xp.reshape(dy, (-1, dy.shape[-1])), None
    if x is not None and not isinstance(weight, QuantizedMatrix):
        dweight = xp.matmul(rows.T, xp.reshape(widen(x), (-1, x.shape[-1])))
        dweight = narrow(dweight, weight.dtype)
    dbias = None if bias_dtype is None else narrow(xp.sum(rows, axis=0), bias_dtype)
    dresidual = None if residual is None else narrow(dout, residual.dtype)
    return narrow(dx, dout.dtype), dweight, dbias, dresidual


@op
def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` with NumPy's rules for vectors and stacks of matrices."""
    return narrow(namespace(a).matmul(widen(a), widen(b)), a.dtype), (a, b)


@matmul.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    xp = namespace(a)
    # A vector is a matrix of one row (left) or one column (right) whose axis is dropped again.
    left = xp.reshape(a, (1, -1)) if len(a.shape) == 1 else a
    right = xp.reshape(b, (-1, 1)) if len(b.shape) == 1 else b
    dy = dout
    if len(a.shape) == 1:
        dy = xp.expand_dims(dy, axis=len(dy.shape) - (0 if len(b.shape) == 1 else 1))
    if len(b.shape) == 1:
        dy = xp.expand_dims(dy, axis=len(dy.shape))
    da = xp.matmul(widen(dy), widen(_swap(right)))
    db = xp.matmul(widen(_swap(left)), widen(dy))
    return _fit(da, a), _fit(db, b)


def _swap(x: Any) -> Any:
    axes = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
    return namespace(x).permute_dims(x, axes)


def _fit(gradient: Any, like: Any) -> Any:
    """Sum over broadcast stacks and drop the axis that a vector had been given."""
    xp = namespace(gradient)
    if len(like.shape) == 1:
        count = like.shape[0]
        row = gradient.shape[-1] == count and gradient.shape[-2] == 1
        flat = xp.reshape(gradient, (-1, count) if row else (-1, count, 1))
        gradient = xp.reshape(xp.sum(flat, axis=0), (count,))
    return narrow(unbroadcast(gradient, tuple(like.shape)), like.dtype)
