"""Activations, and the end of a linear map in one pass: launches of kernels/activation.cu."""

import math
from typing import Any

from ..backend import is_half, narrow, widen
from ..core.op import OPS
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors

_BLOCK, _ROWS_A_PARTIAL = 256, 32
# The numbers that the kernels know the functions by, and whether a second half gates them.
_FUNCTIONS: dict[str | None, tuple[int, bool]] = {
    None: (0, False), "relu": (1, False), "gelu": (2, False), "gelu_tanh": (3, False),
    "silu": (4, False), "swiglu": (4, True), "geglu": (3, True),
}  # fmt: skip

SOURCE = Source("activation.cu", REAL=ELEMENTS.values())
_forward_kernel = SOURCE.kernel("activation_forward")
_backward_kernel = SOURCE.kernel("activation_backward")
_sum_columns = SOURCE.kernel("sum_columns")
_add_column_sums = SOURCE.kernel("add_column_sums")


def finish(
    inner: Any,
    bias: Any,
    residual: Any,
    activation: str | None,
    dtype: Any,
    keep_inner: bool = False,
) -> Any:
    """``activation(inner + bias) + residual`` in ``dtype`` for a packed ``inner`` (N, out).

    ``bias`` (out,) and ``residual``, of the shape of the result, may be None. All may be of any
    element type. ``keep_inner`` leaves inner + bias in ``inner``, for ``back``.
    """
    function, gated = _FUNCTIONS[activation]
    bias, residual = packed(bias), packed(residual)
    rows, width = inner.shape[0], inner.shape[1] // (2 if gated else 1)
    out = empty(inner, (rows, width), dtype)
    real, (given, bias, residual) = _one_half_type(out, inner, bias, residual)
    if keep_inner and bias is not None and given is not inner:
        raise ValueError(f"inner in {inner.dtype} cannot be kept beside results in {dtype}")
    arrays = (given, bias, residual, out)
    wide = _wide(real, arrays)
    if bias is None and not gated:
        rows, width = 1, rows * width
    grid, block, blocks_a_row = _launch(rows, width, real, any(wide))
    last = (rows, width, blocks_a_row, function, gated, keep_inner)
    _forward_kernel(grid, block, *arrays, *last, *wide, REAL=real)
    return out


def back(inner: Any, dout: Any, activation: str | None, dtype: Any = None) -> Any:
    """The gradient of ``inner`` (..., out), which ``finish`` kept, in ``dtype`` (that of ``dout``)
    for ``dout`` of the shape of the result."""
    if activation is None:
        return dout if dtype is None or dout.dtype == dtype else dout.astype(dtype)
    function, gated = _FUNCTIONS[activation]
    dinner = empty(dout, inner.shape, dtype)
    real, arrays = _one_half_type(dinner, packed(inner), packed(dout))
    rows, width = (math.prod(dout.shape[:-1]), dout.shape[-1]) if gated else (1, dout.size)
    arrays = (*arrays, dinner)
    wide = _wide(real, arrays)
    grid, block, blocks_a_row = _launch(rows, width, real, any(wide))
    last = (rows, width, blocks_a_row, function, gated)
    _backward_kernel(grid, block, *arrays, *last, *wide, REAL=real)
    return dinner


def column_sums(rows: Any, dtype: Any) -> Any:
    """The sum of ``rows`` (N, C) over the first axis in ``dtype``, added up in float32 and the same every time."""
    rows = packed(rows)
    (count, width), real = rows.shape, element(rows)
    wide = dtype != rows.dtype or real == "float"
    out = empty(rows, (width,), "float32" if wide else dtype)
    across, down = _block(width, 16 // rows.dtype.itemsize)
    blocks = -(-width // (16 // rows.dtype.itemsize * across))
    # As many blocks as keep the device busy, but not so many that their sums are more than a sixteenth of rows of 16 bits.
    most = -(-8 * processors(rows) // max(1, blocks))
    parts = max(1, min(most, count // _ROWS_A_PARTIAL))
    whole = parts == 1 and wide
    partial = out if whole else empty(rows, (parts, width), "float32")
    _sum_columns((blocks, parts), (across, down), rows, partial, count, width, REAL=real)
    if not whole:
        _add_column_sums(-(-width // 32), (32, 8), partial, out, parts, width, wide, REAL=real)
    return narrow(out, dtype)


def _one_half_type(out: Any, *arrays: Any) -> tuple[str, tuple[Any, ...]]:
    """The kernel's element type and the arrays: those of the other 16-bit type in float32."""
    halves = [x for x in (out, *arrays) if x is not None and is_half(x)]
    if not halves:
        return "float", arrays
    real = halves[0]
    other = [x is not None and is_half(x) and x.dtype != real.dtype for x in arrays]
    fitting = (widen(x) if no else x for x, no in zip(arrays, other, strict=True))
    return element(real), tuple(fitting)


def _wide(real: str, arrays: Any) -> tuple[bool, ...]:
    """Which arrays are in float32 beside 16-bit ones."""
    return tuple(real != "float" and x is not None and not is_half(x) for x in arrays)


def _block(width: int, neighbours: int) -> tuple[int, int]:
    """The threads of a block along a row and along the rows, with ``neighbours`` elements each."""
    chunks = -(-width // neighbours)
    across = min(_BLOCK, 1 << max(0, chunks - 1).bit_length())
    return across, _BLOCK // across


def _launch(rows: int, width: int, real: str, mixed: bool) -> tuple[int, Any, int]:
    """Blocks in all, their shape, and how many of them share a row."""
    neighbours = 4 if mixed or real == "float" else 8
    across, down = _block(width, neighbours)
    blocks_a_row = -(-width // (neighbours * across))
    return blocks_a_row * -(-rows // down), (across, down), blocks_a_row


def _maker(name: str) -> None:
    gated = _FUNCTIONS[name][1]

    def forward(x: Any) -> Any:
        x = packed(x)
        flat = x.reshape((math.prod(x.shape[:-1]), x.shape[-1]) if gated else (1, x.size))
        out = finish(flat, None, None, name, x.dtype)
        shape = (*x.shape[:-1], x.shape[-1] // 2) if gated else x.shape
        return out.reshape(shape), (x,)

    def backward(residuals: Any, dout: Any) -> Any:
        (x,) = residuals
        return (back(x, dout, name, x.dtype),)

    def accepts(x: Any) -> bool:
        whole = not gated or (len(x.shape) > 0 and x.shape[-1] % 2 == 0)
        return is_element(x) and whole

    OPS[name].maker("cuda", forward, backward, accepts)


for _name in _FUNCTIONS:
    if _name is not None:
        _maker(_name)
