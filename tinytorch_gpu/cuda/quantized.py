"""Weights in blocks on a GPU: their products, and their rows by number.

Up to sixteen rows are multiplied with the blocks themselves (kernels/linear.cu), a launch for each part of
another format. Everything else (a prompt, a gradient, plain parts beside blocks) decodes the weight to a workspace
first (kernels/dequantize.cu) and goes on as with a dense one.
"""

from typing import Any

from ..backend import DEVICES, dtype_name, kind
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..ops import embedding, linear
from ..quantized import BLOCKED, MULTIPLIED, QuantizedMatrix
from . import linear as dense
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors

# Weights that a file stores plainly beside others in blocks are copied by the same kernel.
_FORMATS = {**{name: name for name in BLOCKED}, **ELEMENTS}
SOURCE = Source("dequantize.cu", REAL=ELEMENTS.values(), PARAM=_FORMATS.values())
_dequantize = SOURCE.kernel("dequantize_rows")
_THREADS, _PACK = 256, 8

for _kind in DEVICES:
    MULTIPLIED[_kind].update(BLOCKED)


def dequantized(weight: QuantizedMatrix, like: Any, dtype: Any) -> Any:
    """All of ``weight`` (out, in) in ``dtype``, a new array beside ``like``: a launch for each part."""
    out = empty(like, weight.shape, dtype)
    start = 0
    for part in weight.parts:
        stop = start + part.shape[0]
        _rows_of(part, out[start:stop])
        start = stop
    return out


def _rows_of(part: Any, out: Any, ids: Any = None, scale: float = 1.0) -> None:
    """Write the rows ``ids``, or all, of one format to ``out`` (rows, in)."""
    rows, width = out.shape
    blocks, size = part.data, 8 if ids is None else ids.dtype.itemsize
    grid = min(-(-rows * width // (_PACK * _THREADS)), 8 * processors(out))
    _dequantize(
        max(grid, 1), _THREADS, blocks, blocks.shape[1], part.shape[0], ids, size, scale, out, rows, width,
        REAL=element(out), PARAM=_FORMATS[part.format.name],
    )  # fmt: skip


def _direct(x: Any, weight: Any, bias: Any, residual: Any, activation: str | None) -> bool:
    """Whether the kernel that multiplies with blocks takes these arguments."""
    return (
        dense.can_multiply(x, weight, activation)
        and (residual is None or residual.dtype == x.dtype)
        and (bias is None or bias.flags.c_contiguous)
    )


def _forward(
    x: Any, weight: QuantizedMatrix, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    direct = _direct(x, weight, bias, residual, activation)
    if direct and not (grad_enabled() and activation):
        out = dense.quantized_linear(x, weight, bias, residual, activation=activation)
        bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
        return out, (None, weight, bias_dtype, None, residual)
    wide = dequantized(weight, x, x.dtype)
    out, saved = dense._forward(x, wide, bias, residual, activation=activation, needs=needs)
    return out, (None, weight, *saved[2:])


def _backward(
    residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None
) -> Any:
    _, weight, *rest = residuals
    wide = dequantized(weight, dout, dout.dtype)
    return dense._backward((None, wide, *rest), dout, activation=activation, needs=needs)


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> bool:  # fmt: skip
    return (
        isinstance(weight, QuantizedMatrix)
        and not weight.turned
        and all(part.format.name in _FORMATS for part in weight.parts)
        and is_element(x, bias, residual)
        and bool(x.size and weight.size)
    )


def after_norm(
    norm: Any, x: Any, weight: Any, bias: Any, residual: Any, activation: str | None
) -> Any:
    """A forward of ``linear`` on blocks that does ``norm`` (see ``decode_linear``) of ``x`` in the same
    launch, or None."""
    if not _accepts(x, weight, bias, residual):
        return None
    if not _direct(x, weight, bias, residual, activation):
        return None

    def forward(_: Any, weight: Any, bias: Any = None, residual: Any = None, **more: Any) -> Any:
        return dense.quantized_linear(x, weight, bias, residual, norm=norm, **more)

    return forward


def _look_up(
    ids: Any, weight: QuantizedMatrix, *, dtype: Any = None, padding: int | None = None,
    scale: float = 1.0,
) -> Any:  # fmt: skip
    out = empty(ids, (*ids.shape, weight.shape[1]), dtype or "float32")
    flat = packed(ids).reshape(-1)
    if flat.size:
        _rows_of(weight.parts[0], out.reshape(-1, weight.shape[1]), flat, scale)
    return out, (ids, weight.shape[0], weight.dtype)


def _can_look_up(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> bool:
    return (
        isinstance(weight, QuantizedMatrix)
        and weight.dtype.name in _FORMATS
        and kind(ids) in DEVICES
        and dtype_name(ids.dtype) in ("int32", "int64")
        and (dtype is None or dtype_name(dtype) in ELEMENTS)
    )


linear.maker("cuda", _forward, _backward, accepts=_accepts)
embedding.maker("cuda", _look_up, accepts=_can_look_up)
