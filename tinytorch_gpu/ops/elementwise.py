"""Arithmetic element by element, with NumPy's broadcasting: what a user types on a Tensor."""

from typing import Any

from ..backend import is_array, is_half, namespace, narrow, widen
from ..core.op import op


def unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sum ``gradient`` over the axes along which an operand of ``shape`` was repeated."""
    if tuple(gradient.shape) == tuple(shape):
        return gradient
    xp = namespace(gradient)
    extra = len(gradient.shape) - len(shape)
    repeated = [i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1]
    axes = (*range(extra), *repeated)
    return narrow(xp.reshape(xp.sum(widen(gradient), axis=axes), shape), gradient.dtype)


def _like(x: Any) -> Any:
    """Shape and dtype of an array operand; None for a Python number, which has no gradient."""
    return (tuple(x.shape), x.dtype) if is_array(x) else None


def _back(gradient: Any, like: Any) -> Any:
    return None if like is None else narrow(unbroadcast(gradient, like[0]), like[1])


def _beside(out: Any, a: Any, b: Any) -> Any:
    """``out`` of an array and a Python number, in the array's 16 bits: NumPy widens bfloat16."""
    array = a if not is_array(b) else b if not is_array(a) else None
    return narrow(out, array.dtype) if array is not None and is_half(array) else out


def _xp(*operands: Any) -> Any:
    return namespace(next(x for x in operands if is_array(x)))


@op
def add(a: Any, b: Any) -> Any:
    """a + b."""
    return _beside(a + b, a, b), (_like(a), _like(b))


@add.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout, a), _back(dout, b)


@op
def subtract(a: Any, b: Any) -> Any:
    """a - b."""
    return _beside(a - b, a, b), (_like(a), _like(b))


@subtract.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout, a), _back(-dout, b)


@op
def multiply(a: Any, b: Any) -> Any:
    """a * b."""
    return _beside(a * b, a, b), (a, b)


@multiply.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    dy = widen(dout)
    return _back(dy * b, _like(a)), _back(dy * a, _like(b))


@op
def divide(a: Any, b: Any) -> Any:
    """a / b."""
    return _beside(a / b, a, b), (a, b)


@divide.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    da = widen(dout) / b
    return _back(da, _like(a)), _back(-(da * a / b), _like(b))


@op
def power(x: Any, *, exponent: float) -> Any:
    """x ** exponent, for a Python number."""
    out = widen(x) ** exponent
    return (narrow(out, x.dtype) if is_half(x) else out), (x,)


@power.backward
def _(residuals: Any, dout: Any, *, exponent: float) -> Any:
    (x,) = residuals
    if exponent == 0:
        return (namespace(x).zeros_like(x),)
    return (narrow(widen(dout) * (exponent * widen(x) ** (exponent - 1)), x.dtype),)


@op
def negative(x: Any) -> Any:
    """-x."""
    return -x, ()


@negative.backward
def _(residuals: Any, dout: Any) -> Any:
    return (-dout,)


@op
def absolute(x: Any) -> Any:
    """|x|, with gradient 0 at 0."""
    xp = namespace(x)
    return xp.abs(x), (xp.sign(x),)


@absolute.backward
def _(residuals: Any, dout: Any) -> Any:
    (sign,) = residuals
    return (dout * sign,)


@op
def exp(x: Any) -> Any:
    """e ** x."""
    out = namespace(x).exp(x)
    return out, (out,)


@exp.backward
def _(residuals: Any, dout: Any) -> Any:
    (out,) = residuals
    return (dout * out,)


@op
def log(x: Any) -> Any:
    """The natural logarithm."""
    return namespace(x).log(x), (x,)


@log.backward
def _(residuals: Any, dout: Any) -> Any:
    (x,) = residuals
    return (dout / x,)


@op
def sqrt(x: Any) -> Any:
    """The square root."""
    out = namespace(x).sqrt(x)
    return out, (out,)


@sqrt.backward
def _(residuals: Any, dout: Any) -> Any:
    (out,) = residuals
    return (dout / (2 * out),)


@op
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    out = namespace(x).tanh(x)
    return out, (out,)


@tanh.backward
def _(residuals: Any, dout: Any) -> Any:
    (out,) = residuals
    wide = widen(out)
    return (narrow(widen(dout) * (1 - wide * wide), out.dtype),)


@op
def sigmoid(x: Any) -> Any:
    """1 / (1 + e ** -x), through tanh so that no exponential overflows."""
    out = narrow(0.5 * namespace(x).tanh(0.5 * widen(x)) + 0.5, x.dtype)
    return out, (out,)


@sigmoid.backward
def _(residuals: Any, dout: Any) -> Any:
    (out,) = residuals
    wide = widen(out)
    return (narrow(widen(dout) * wide * (1 - wide), out.dtype),)


@op
def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where ``condition`` (boolean) holds, else ``b``."""
    xp = _xp(condition)
    return xp.where(condition, a, b), (condition, _like(a), _like(b))


@where.backward
def _(residuals: Any, dout: Any) -> Any:
    condition, a, b = residuals
    zero = namespace(dout).zeros_like(dout)
    xp = namespace(dout)
    return (
        None,
        _back(xp.where(condition, dout, zero), a),
        _back(xp.where(condition, zero, dout), b),
    )


@op
def cast(x: Any, *, dtype: Any) -> Any:
    """``x`` in another floating dtype."""
    return namespace(x).astype(x, dtype), (x.dtype,)


@cast.backward
def _(residuals: Any, dout: Any, *, dtype: Any) -> Any:
    return (namespace(dout).astype(dout, residuals[0]),)


@op
def concat(*arrays: Any, axis: int = 0) -> Any:
    """The arrays one after another along ``axis``."""
    return _xp(*arrays).concat(arrays, axis=axis), tuple(a.shape[axis] for a in arrays)


@concat.backward
def _(residuals: Any, dout: Any, *, axis: int = 0) -> Any:
    parts, start = [], 0
    for length in residuals:
        index = [slice(None)] * len(dout.shape)
        index[axis] = slice(start, start + length)
        parts.append(dout[tuple(index)])
        start += length
    return tuple(parts)
