"""Sums, means, maxima and softmax over axes."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in ((axis,) if isinstance(axis, int) else axis))


def _spread(dout: Any, shape: tuple[int, ...], axis: Any) -> Any:
    """Give back the axes that a reduction took away, repeating the values along them."""
    xp = namespace(dout)
    reduced = _axes(axis, len(shape))
    kept = tuple(1 if i in reduced else n for i, n in enumerate(shape))
    return xp.broadcast_to(xp.reshape(dout, kept), shape)


def _count(shape: tuple[int, ...], axis: Any) -> int:
    count = 1
    for i in _axes(axis, len(shape)):
        count *= shape[i]
    return count


@op
def sum(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The sum over ``axis`` (all of them by default), in at least float32."""
    total = namespace(x).sum(widen(x), axis=axis, keepdims=keepdims)
    return narrow(total, x.dtype) if "float" in str(x.dtype) else total, tuple(x.shape)


@sum.backward
def _(residuals: Any, dout: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    return (_spread(dout, residuals, axis),)


@op
def mean(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean over ``axis`` (all of them by default), in at least float32."""
    return narrow(namespace(x).mean(widen(x), axis=axis, keepdims=keepdims), x.dtype), tuple(
        x.shape
    )


@mean.backward
def _(residuals: Any, dout: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    return (_spread(dout / _count(residuals, axis), residuals, axis),)


@op
def max(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The largest value over ``axis``; equal largest ones share the gradient."""
    xp = namespace(x)
    out = xp.max(x, axis=axis, keepdims=keepdims)
    return out, (x, out)


@max.backward
def _(residuals: Any, dout: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    x, out = residuals
    xp = namespace(x)
    chosen = xp.astype(x == _spread(out, x.shape, axis), x.dtype)
    share = chosen / xp.sum(chosen, axis=_axes(axis, len(x.shape)), keepdims=True)
    return (_spread(dout, x.shape, axis) * share,)


@op
def softmax(x: Any, *, axis: int = -1) -> Any:
    """e ** x scaled to sum 1 along ``axis``; a row of -inf only gives zeros."""
    out = narrow(softmax_of(widen(x), axis), x.dtype)
    return out, (out,)


@softmax.backward
def _(residuals: Any, dout: Any, *, axis: int = -1) -> Any:
    (out,) = residuals
    xp = namespace(out)
    wide, dy = widen(out), widen(dout)
    dx = wide * (dy - xp.sum(dy * wide, axis=axis, keepdims=True))
    return (narrow(dx, out.dtype),)


def softmax_of(x: Any, axis: int = -1) -> Any:
    """Softmax of a plain array, zeros where all of a row is -inf."""
    xp = namespace(x)
    top = xp.max(x, axis=axis, keepdims=True)
    powers = xp.exp(x - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    total = xp.sum(powers, axis=axis, keepdims=True)
    return powers / xp.where(total > 0, total, xp.ones_like(total))
