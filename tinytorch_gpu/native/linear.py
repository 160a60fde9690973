"""Linear maps by the library (kernels/cpu/linear.cpp): any number of rows, any storage of the weight."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..host.linear_backward import backward as host_backward
from ..ops import linear
from ..quantized import QuantizedMatrix
from .activation import ACTIVATIONS, GATED, activation_gradient
from .blocks import FORMATS, GROUP, PLAIN, interleaved
from .elementwise import converted
from .library import Operation, Record, packed, pointer
from .sizes import MANY_ROWS, rounded_bytes

# x, weight, bias, residual, inner, out, scratch; rows, width, outs, format, bias format, activation,
# pitch, exact
_linear = Operation("linear", "7P8q")

# left, right, out; rows, columns, depth, and both's strides
_product = Operation("product", "3P7q")
_column_sums = Operation("column_sums", "2P2q")  # x, sums; rows, width


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> bool:  # fmt: skip
    if x.dtype != numpy.float32 or not (x.size and weight.size):
        return False
    if x.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return False  # native code would read beyond an array; the reference says what is wrong
    if bias is not None and dtype_name(bias.dtype) not in PLAIN:
        return False
    if activation in GATED and weight.shape[0] % 2:
        return False
    outs = weight.shape[0] // (2 if activation in GATED else 1)
    if residual is not None and (
        residual.dtype != numpy.float32 or residual.shape != (*x.shape[:-1], outs)
    ):
        return False
    if isinstance(weight, QuantizedMatrix):
        return _accepts_blocks(weight, activation)
    return dtype_name(weight.dtype) in PLAIN and weight.flags.c_contiguous


def _accepts_blocks(weight: QuantizedMatrix, activation: str | None) -> bool:
    if weight.turned or any(p.format.name not in FORMATS for p in weight.parts):
        return False
    if activation is None:
        return True
    whole = activation not in GATED or weight.shape[0] % (2 * GROUP) == 0
    return len(weight.parts) == 1 and whole


def _calls(
    x: Any, weight: Any, bias: Any, residual: Any, inner: Any, out: Any, activation: str | None
) -> list[tuple[Any, tuple[int, ...]]]:
    """What must stay alive and the fields of each native call: one for each part of a weight.

    In inference a quantized weight meets x in 8 bits; a gradient is that of the exact product."""
    width, made = x.shape[-1], out.shape[-1]
    rows = x.size // width
    calls: list[tuple[Any, tuple[int, ...]]] = []
    first = 0
    for array, outs, form in _parts(weight):
        scratch, exact = None, form not in PLAIN and grad_enabled()
        if form not in PLAIN and rows > 1 and not exact:
            scratch = numpy.empty(rows * rounded_bytes(width), numpy.uint8)
        places = (0, 0, first * (0 if bias is None else bias.itemsize), 4 * first, 0, 4 * first, 0)
        arrays = (x, array, bias, residual, inner, out, scratch)
        pointers = (p and p + o for p, o in zip(map(pointer, arrays), places, strict=True))
        fields = (
            *pointers, rows, width, outs, FORMATS[form],
            0 if bias is None else FORMATS[dtype_name(bias.dtype)], ACTIVATIONS[activation], made,
            exact,
        )  # fmt: skip
        calls.append((arrays, fields))
        first += outs
    return calls


def _parts(weight: Any) -> list[tuple[Any, int, str]]:
    """(array, outputs, format) of the rows of a weight that are of one format."""
    if not isinstance(weight, QuantizedMatrix):
        return [(weight, weight.shape[0], dtype_name(weight.dtype))]
    return [
        (p.data if p.format.name in PLAIN else interleaved(p), p.shape[0], p.format.name)
        for p in weight.parts
    ]


def _halves_apart(x: Any, weight: Any, activation: str | None) -> bool:
    """Whether both halves of a gated product must be kept until all of it is done."""
    many = x.size >= MANY_ROWS * x.shape[-1]
    return activation in GATED and many and _parts(weight)[0][2] in PLAIN


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    x, bias, residual = map(packed, (x, bias, residual))
    outs = weight.shape[0]
    out = numpy.empty((*x.shape[:-1], outs // 2 if activation in GATED else outs), numpy.float32)
    recorded, inner = grad_enabled(), None
    if (recorded and activation is not None) or _halves_apart(x, weight, activation):
        inner = numpy.empty((*x.shape[:-1], outs), numpy.float32)
    for _alive, fields in _calls(x, weight, bias, residual, inner, out, activation):
        _linear(outs * x.size, *fields)
    if not recorded:
        return out, None
    kept = x if needed(needs, 1) else None
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    return out, (kept, weight, bias_dtype, inner, residual)


def _plan(
    out: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> list[Record] | None:  # fmt: skip
    """The same product of whatever ``x`` holds by then."""
    if not all(a is None or a.flags.c_contiguous for a in (x, bias, residual, out)):
        return None
    inner = None
    if _halves_apart(x, weight, activation):
        inner = numpy.empty((*x.shape[:-1], weight.shape[0]), numpy.float32)
    calls = _calls(x, weight, bias, residual, inner, out, activation)
    return [_linear.record(alive, *fields) for alive, fields in calls]


def backward(residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None) -> Any:
    """The backward half: by the library where the states are in float32 and the weight is not in blocks."""
    x, weight, bias_dtype, inner, residual = residuals
    states = [a for a in (x, inner, residual, dout) if a is not None]
    if (
        isinstance(weight, QuantizedMatrix)
        or not weight.flags.c_contiguous
        or not dout.size
        or any(dtype_name(d) not in PLAIN for d in (weight.dtype, bias_dtype or weight.dtype))
        or not all(isinstance(a, numpy.ndarray) and a.dtype == numpy.float32 for a in states)
    ):
        return host_backward(residuals, dout, activation=activation, needs=needs)
    dy, dweight, dbias = packed(dout), None, None
    if activation is not None:
        dy, given = numpy.empty(inner.shape, numpy.float32), dy
        activation_gradient(activation, packed(inner), given, dy)
    rows = dy.reshape(-1, dy.shape[-1])
    dx = product(rows, converted(weight, dy.dtype)).reshape(*dout.shape[:-1], weight.shape[1])
    if x is not None:
        dweight = converted(product(rows.T, packed(x).reshape(-1, x.shape[-1])), weight.dtype)
    if bias_dtype is not None:
        dbias = numpy.empty(weight.shape[0], numpy.float32)
        _column_sums(rows.size, pointer(rows), pointer(dbias), *rows.shape)
        dbias = converted(dbias, bias_dtype)
    return dx, dweight, dbias, None if residual is None else dout


def product(left: Any, right: Any) -> Any:
    """(M, K) times (K, N), both float32 and one way round or the other in order in memory."""
    (rows, depth), columns = left.shape, right.shape[1]
    out = numpy.empty((rows, columns), numpy.float32)
    strides = (s // 4 for s in (*left.strides, *right.strides))
    arrays = map(pointer, (left, right, out))
    _product(left.size * columns, *arrays, rows, columns, depth, *strides)
    return out


linear.maker("cpu", _forward, backward, accepts=_accepts, plan=_plan, ahead=True)
