"""Layer and RMS normalization: launches of kernels/norm.cu."""

from typing import Any

from ..backend import dtype_name
from ..ops import add_layer_norm, add_rms_norm, layer_norm, norm_heads, rms_norm
from ..ops.norm import heads_gradient, normed_heads
from .launch import ELEMENTS, Source, element, empty, packed, processors

_MOST_THREADS, _SHORT_BLOCK = 512, 128
# Threads of the forward that the registers of a processor are enough for; of 16-bit rows without a mean twice as many,
# which these need, since each has half the bytes under way.
_RESIDENT = 512
_FORWARD_ELEMENTS, _BACKWARD_BYTES, _WIDE_ELEMENTS = 16, 32, 32  # of a row in a thread
_MOST_WIDTH = _MOST_THREADS * _WIDE_ELEMENTS
_RESIDENT_HEADS = 1024  # the same of the norm of heads
_ROWS_A_PARTIAL, _LEAST_PARTIALS = 64, 16

SOURCE = Source(
    "norm.cu",
    # A weight in the element type of x, or one of the two in float32.
    only=lambda v: v["REAL"] == v["PARAM"] or "float" in v.values(),
    REAL=ELEMENTS.values(),
    PARAM=ELEMENTS.values(),
)
_layer_forward = SOURCE.kernel("layer_norm_forward")
_rms_forward = SOURCE.kernel("rms_norm_forward")
_layer_forward_wide = SOURCE.kernel("layer_norm_forward_wide")
_rms_forward_wide = SOURCE.kernel("rms_norm_forward_wide")
_layer_backward = SOURCE.kernel("layer_norm_backward")
_rms_backward = SOURCE.kernel("rms_norm_backward")
_layer_backward_wide = SOURCE.kernel("layer_norm_backward_wide")
_rms_backward_wide = SOURCE.kernel("rms_norm_backward_wide")
_heads_forward = SOURCE.kernel("norm_heads_forward")
_sum_gradients = SOURCE.kernel("sum_norm_gradients")


def _variant(x: Any, weight: Any) -> dict[str, str]:
    return {"REAL": element(x), "PARAM": element(weight)}


def _group(width: int, itemsize: int, elements: int) -> int:
    """How many threads share a row, ``elements`` each at most: a power of two up to a warp, or
    whole warps. Short rows of vectors have no more than they need, so that each thread has several
    loads under way; rows that allow no vectors have more, as elements are taken one by one."""
    if width % (16 // itemsize):
        elements = 1 if width <= 32 else 8 if width <= 8 * _MOST_THREADS else elements
    if width > 32 * elements:
        return -(-width // (32 * elements)) * 32
    return max(2, 1 << (-(-width // elements) - 1).bit_length())


def _forward(x: Any, residual: Any, weight: Any, bias: Any, eps: float, centred: bool) -> Any:
    """(total or None, out, residuals)."""
    x, residual, weight, bias = map(packed, (x, residual, weight, bias))
    width = x.shape[-1]
    rows, per_row = x.size // width, (*x.shape[:-1], 1)
    out, rstd = empty(x, x.shape), empty(x, per_row, "float32")
    mean = empty(x, per_row, "float32") if centred else None
    total = None if residual is None else empty(x, x.shape)
    wide = width > _MOST_THREADS * _FORWARD_ELEMENTS
    group = _group(width, x.dtype.itemsize, _WIDE_ELEMENTS if wide else _FORWARD_ELEMENTS)
    block = group if group > 32 else _SHORT_BLOCK
    resident = _RESIDENT if centred or wide or x.dtype.itemsize > 2 else 2 * _RESIDENT
    # Blocks stay for the whole launch, so that each reads the weights once.
    grid = min(-(-rows * group // block), processors(x) * max(1, resident // block))
    last, normed, variant = (
        (rows, width, group, eps),
        x if total is None else total,
        _variant(x, weight),
    )
    if centred:
        kernel, results = _layer_forward_wide if wide else _layer_forward, (total, out, mean, rstd)
        kernel(grid, block, x, residual, weight, bias, *results, *last, **variant)
        return total, out, (normed, weight, mean, rstd)
    kernel = _rms_forward_wide if wide else _rms_forward
    kernel(grid, block, x, residual, weight, total, out, rstd, *last, **variant)
    return total, out, (normed, weight, rstd)


def _backward(residuals: Any, dout: Any, dtotal: Any = None) -> Any:
    """The gradients of x, weight and, with a mean among the residuals, bias."""
    x, weight, *mean, rstd = residuals
    x, weight, rstd, dout, dtotal = map(packed, (x, weight, rstd, dout, dtotal))
    width = x.shape[-1]
    rows, elements = x.size // width, _BACKWARD_BYTES // x.dtype.itemsize
    wide = width > _MOST_THREADS * elements
    group = _MOST_THREADS if wide else _group(width, x.dtype.itemsize, elements)
    count = _partials(x, rows, _MOST_THREADS // group)
    sums = 2 if mean else 1
    dx, partial = empty(x, x.shape), empty(x, (sums, count, width), "float32")
    arrays = (x, weight, *mean, rstd, dout, dtotal, dx, *(partial[i] for i in range(sums)))
    grid, variant = count if rows else 0, _variant(x, weight)
    if wide:
        kernel = _layer_backward_wide if mean else _rms_backward_wide
        kernel(grid, _MOST_THREADS, *arrays, rows, width, **variant)
    else:
        kernel = _layer_backward if mean else _rms_backward
        kernel(grid, _MOST_THREADS, *arrays, rows, width, group, **variant)
    gradients = [empty(weight, (width,)) for _ in range(sums)]
    dweight, dbias = (*gradients, None)[:2]
    columns = (-(-width // 32), sums)
    _sum_gradients(columns, (32, 8), partial, dweight, dbias, grid, width, **variant)
    return dx, *gradients


def _partials(x: Any, rows: int, groups: int) -> int:
    """How many blocks share the rows: up to one a multiprocessor, but few for few rows, since each
    leaves a row of partial sums behind."""
    most = min(-(-rows // groups), processors(x))
    return max(1, min(most, max(_LEAST_PARTIALS, rows // _ROWS_A_PARTIAL)))


def _heads(x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6) -> Any:
    x, q_weight, k_weight = map(packed, (x, q_weight, k_weight))
    count, (batch, tokens, total, width) = normed_heads(x, heads), x.shape
    out, rstd = empty(x, x.shape), empty(x, (batch, tokens, count, 1), "float32")
    rows, lanes = batch * tokens * total, _heads_group(width, x.itemsize)
    grid = min(-(-rows * lanes // _SHORT_BLOCK), processors(x) * (_RESIDENT_HEADS // _SHORT_BLOCK))
    _heads_forward(
        grid, _SHORT_BLOCK, x, q_weight, k_weight, out, rstd, rows, heads, count - heads, width, lanes,
        eps, **_variant(x, q_weight),
    )  # fmt: skip
    return out, (x, q_weight, k_weight, rstd)


def _heads_group(width: int, itemsize: int) -> int:
    """How many threads share a head: one for each 16 bytes, a power of two up to a warp."""
    return min(32, 1 << (max(1, width * itemsize // 16) - 1).bit_length())


def _layer(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    _, out, residuals = _forward(x, None, weight, bias, eps, True)
    return out, residuals


def _rms(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    _, out, residuals = _forward(x, None, weight, None, eps, False)
    return out, residuals


def _add_layer(x: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    total, out, residuals = _forward(x, residual, weight, bias, eps, True)
    return (total, out), residuals


def _add_rms(x: Any, residual: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    total, out, residuals = _forward(x, residual, weight, None, eps, False)
    return (total, out), residuals


def _norm_backward(residuals: Any, dout: Any, *, eps: float = 0.0) -> Any:
    return _backward(residuals, dout)


def _add_backward(residuals: Any, dtotal: Any, dout: Any, *, eps: float = 0.0) -> Any:
    dx, *gradients = _backward(residuals, dout, dtotal)
    return dx, dx, *gradients


def _heads_backward(residuals: Any, dout: Any, *, heads: int, eps: float = 0.0) -> Any:
    return heads_gradient(_backward, residuals, dout, heads)


def _norm_accepts(x: Any, weight: Any, bias: Any = None, *, eps: float = 0.0) -> bool:
    real, param = dtype_name(x.dtype), dtype_name(weight.dtype)
    if real not in ELEMENTS or param not in ELEMENTS or not x.shape:
        return False
    if real != param and "float32" not in (real, param):
        return False
    width = x.shape[-1]
    per_column = weight.shape == (width,) and 0 < width <= _MOST_WIDTH
    return per_column and (bias is None or (bias.shape, bias.dtype) == (weight.shape, weight.dtype))


def _add_accepts(x: Any, residual: Any, *parameters: Any, eps: float = 0.0) -> bool:
    same = residual.shape == x.shape and residual.dtype == x.dtype
    return same and _norm_accepts(x, *parameters)


def _heads_accept(x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 0.0) -> bool:
    same = q_weight.shape == k_weight.shape and q_weight.dtype == k_weight.dtype
    whole = len(x.shape) == 4 and 0 < heads < x.shape[2] and (x.shape[2] - heads) % 2 == 0
    return same and whole and _norm_accepts(x, q_weight)


layer_norm.maker("cuda", _layer, _norm_backward, _norm_accepts)
rms_norm.maker("cuda", _rms, _norm_backward, _norm_accepts)
add_layer_norm.maker("cuda", _add_layer, _add_backward, _add_accepts)
add_rms_norm.maker("cuda", _add_rms, _add_backward, _add_accepts)
norm_heads.maker("cuda", _heads, _heads_backward, _heads_accept)
