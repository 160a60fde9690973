"""Arithmetic element by element, with NumPy's broadcasting: what a user types on a Tensor."""

from typing import Any

from ..backend import is_array, namespace
from ..core.op import op


def unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sum ``gradient`` over the axes along which an operand of ``shape`` was repeated."""
    if tuple(gradient.shape) == tuple(shape):
        return gradient
    xp = namespace(gradient)
    extra = len(gradient.shape) - len(shape)
    repeated = [i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1]
    axes = (*range(extra), *repeated)
    return xp.reshape(xp.sum(gradient, axis=axes, dtype=gradient.dtype), shape)


def _shape(x: Any) -> tuple[int, ...] | None:
    """The shape of an array operand; None for a Python number, which has no gradient."""
    return tuple(x.shape) if is_array(x) else None


def _back(gradient: Any, shape: tuple[int, ...] | None) -> Any:
    return None if shape is None else unbroadcast(gradient, shape)


def _xp(*operands: Any) -> Any:
    return namespace(next(x for x in operands if is_array(x)))


@op
def add(a: Any, b: Any) -> Any:
    """a + b."""
    return a + b, (_shape(a), _shape(b))


@add.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout, a), _back(dout, b)


@op
def subtract(a: Any, b: Any) -> Any:
    """a - b."""
    return a - b, (_shape(a), _shape(b))


@subtract.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout, a), _back(-dout, b)


@op
def multiply(a: Any, b: Any) -> Any:
    """a * b."""
    return a * b, (a, b)


@multiply.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout * b, _shape(a)), _back(dout * a, _shape(b))


@op
def divide(a: Any, b: Any) -> Any:
    """a / b."""
    return a / b, (a, b)


@divide.backward
def _(residuals: Any, dout: Any) -> Any:
    a, b = residuals
    return _back(dout / b, _shape(a)), _back(-dout * a / (b * b), _shape(b))


@op
def power(x: Any, *, exponent: float) -> Any:
    """x ** exponent, for a Python number."""
    return x**exponent, (x,)


@power.backward
def _(residuals: Any, dout: Any, *, exponent: float) -> Any:
    (x,) = residuals
    return (dout * exponent * x ** (exponent - 1),)


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
    return (dout * (1 - out * out),)


@op
def sigmoid(x: Any) -> Any:
    """1 / (1 + e ** -x), through tanh so that no exponential overflows."""
    out = 0.5 * namespace(x).tanh(0.5 * x) + 0.5
    return out, (out,)


@sigmoid.backward
def _(residuals: Any, dout: Any) -> Any:
    (out,) = residuals
    return (dout * out * (1 - out),)


@op
def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where ``condition`` (boolean) holds, else ``b``."""
    xp = _xp(condition)
    return xp.where(condition, a, b), (condition, _shape(a), _shape(b))


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
