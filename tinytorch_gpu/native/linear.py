"""Linear maps by the library (kernels/cpu/linear.cpp): any number of rows, any storage of the weight."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..host.linear import backward
from ..ops import linear
from ..quantized import QuantizedMatrix
from .activation import ACTIVATIONS, GATED
from .blocks import FORMATS, GROUP, PLAIN, interleaved
from .library import Operation, Record, packed, pointer

# x, weight, bias, residual, inner, out, scratch; rows, width, outs, format, bias format, activation,
# pitch
_linear = Operation("linear", "7P7q")

# Products in float32 of more rows than this are the BLAS's.
MOST_ROWS = 16


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
    outs = weight.shape[0] // (2 if activation in GATED else 1)
    if residual is not None and (
        residual.dtype != numpy.float32 or residual.shape != (*x.shape[:-1], outs)
    ):
        return False
    if isinstance(weight, QuantizedMatrix):
        return _accepts_blocks(weight, activation)
    few = weight.dtype != numpy.float32 or x.size <= MOST_ROWS * x.shape[-1]
    return few and dtype_name(weight.dtype) in PLAIN and weight.flags.c_contiguous


def _accepts_blocks(weight: QuantizedMatrix, activation: str | None) -> bool:
    """Rounding x to 8 bits is for inference: a gradient is that of the exact product."""
    if grad_enabled() or weight.turned or any(p.format.name not in FORMATS for p in weight.parts):
        return False
    if activation is None:
        return True
    whole = activation not in GATED or weight.shape[0] % (2 * GROUP) == 0
    return len(weight.parts) == 1 and whole


def _calls(
    x: Any, weight: Any, bias: Any, residual: Any, inner: Any, out: Any, activation: str | None
) -> list[tuple[Any, tuple[int, ...]]]:
    """What must stay alive and the fields of each native call: one for each part of a weight."""
    width, made = x.shape[-1], out.shape[-1]
    rows = x.size // width
    calls: list[tuple[Any, tuple[int, ...]]] = []
    first = 0
    for array, outs, form in _parts(weight):
        scratch = None
        if form not in PLAIN and rows > 1:
            scratch = numpy.empty(rows * _rounded_bytes(width), numpy.uint8)
        places = (0, 0, first * (0 if bias is None else bias.itemsize), 4 * first, 0, 4 * first, 0)
        arrays = (x, array, bias, residual, inner, out, scratch)
        pointers = (p and p + o for p, o in zip(map(pointer, arrays), places, strict=True))
        fields = (
            *pointers, rows, width, outs, FORMATS[form],
            0 if bias is None else FORMATS[dtype_name(bias.dtype)], ACTIVATIONS[activation], made,
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


def _rounded_bytes(width: int) -> int:
    """Bytes of a row of x in 8 bits, with its scales (kernels/cpu/linear_quantized.h)."""
    return -(-(width + width // 32 * 16) // 64) * 64


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    x, bias, residual = map(packed, (x, bias, residual))
    outs = weight.shape[0]
    out = numpy.empty((*x.shape[:-1], outs // 2 if activation in GATED else outs), numpy.float32)
    recorded, inner = grad_enabled(), None
    if recorded and activation is not None:
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
    calls = _calls(x, weight, bias, residual, None, out, activation)
    return [_linear.record(alive, *fields) for alive, fields in calls]


linear.maker("cpu", _forward, backward, accepts=_accepts, plan=_plan, ahead=True)
