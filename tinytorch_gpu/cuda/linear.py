"""Linear maps: our own kernel for the few rows of a decode step, cuBLAS for the many of a prompt.

cuBLAS may not run inside a stream capture (CuPy refuses it), and it reads a 16-bit or quantized weight
only after it has been widened; kernels/linear.cu does neither and takes norm, bias, activation and
residual along.
"""

import math
from collections.abc import Callable
from typing import Any

from ..backend import DEVICES, dtype_name, kind, narrow
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..ops import linear
from ..quantized import BLOCKED, QuantizedMatrix, format_named
from .activation import back, column_sums, finish
from .launch import (
    ELEMENTS,
    Source,
    compute_capability,
    element,
    empty,
    is_element,
    packed,
    processors,
    shared_limit,
)
from .products import as_rows, gradients, outputs

SOURCE = Source(
    "linear.cu",
    only=lambda v: v["PARAM"] in (*BLOCKED, v["REAL"]) or v["REAL"] == "float",
    REAL=ELEMENTS.values(),
    PARAM=(*ELEMENTS.values(), *BLOCKED),
)
TENSOR = Source("linear_tensor.cu", REAL=("half", "bfloat16"))
# Up to two rows, up to sixteen, and the latter on the tensor cores.
_few, _many = SOURCE.kernel("linear_decode"), SOURCE.kernel("linear_decode_many")
_tensor = TENSOR.kernel("linear_decode_tensor")
FEW_ROWS, MOST_ROWS, WARPS = 2, 16, 8
_ACTIVATIONS = {
    None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "swiglu": 5, "geglu": 6,
}  # fmt: skip
_GATED = ("swiglu", "geglu")
_NORMS = {None: 0, "layer": 1, "rms": 2}
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
_GROUP = 1024  # weights in blocks that a warp takes apart at a time
# Bytes of shared memory: for the tensor cores' sums of 8 rows, and static ones for the other kernels' sums.
_SUMS, _STATIC = WARPS * 8 * 20 * 4, 4 * MOST_ROWS * (2 * 2 * WARPS + 1) * 4


def decode_linear(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, norm: tuple[str, Any, Any, float] | None = None,
) -> Any:  # fmt: skip
    """``activation(norm(x) @ weight.T + bias) + residual`` for up to 16 rows, in one launch.

    ``x`` (..., in), ``weight`` (out, in) by rows, dense; ``norm`` is ("layer" or "rms", gain, shift of
    the same dtype or None, eps). The caller has asked ``can_decode``.
    """
    out = _results(x, weight.shape[0], activation)
    if out.size:
        weight, ends = packed(weight), _Ends(out, 0, bias, residual, activation, norm)
        _launch(packed(x), weight, element(weight), weight.shape[0], ends)
    return out


def quantized_linear(
    x: Any, weight: QuantizedMatrix, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, norm: tuple[str, Any, Any, float] | None = None,
) -> Any:  # fmt: skip
    """The same for a weight in GGUF's blocks, one launch for each of its parts. What ``can_multiply``
    refuses is a ValueError."""
    if weight.shape[1] != x.shape[-1]:
        raise ValueError(f"a weight {weight.shape} does not multiply rows of {x.shape[-1]}")
    if not can_multiply(x, weight, activation):
        raise ValueError(
            f"{weight.dtype} {weight.shape} and x {x.shape}: a product with blocks takes up to {MOST_ROWS} "
            "rows, parts that are all in blocks, and a gated activation of one part only"
        )
    out, start, x = _results(x, weight.shape[0], activation), 0, packed(x)
    for part in weight.parts if out.size else ():
        blocks = packed(part.unpacked())
        if blocks.data.ptr % 2:  # the kernel reads two bytes at a time
            blocks = blocks.astype("uint8")
        ends = _Ends(out, start, bias, residual, activation, norm)
        _launch(x, blocks, part.format.name, part.shape[0], ends)
        start += part.shape[0]
    return out


def can_multiply(x: Any, weight: QuantizedMatrix, activation: str | None) -> bool:
    """Whether ``quantized_linear`` takes these arguments."""
    names = [part.format.name for part in weight.parts]
    return (
        math.prod(x.shape[:-1]) <= MOST_ROWS
        and all(name in BLOCKED and _fits(x, name) for name in names)
        and (len(names) == 1 or activation not in _GATED)
    )


def _results(x: Any, outs: int, activation: str | None) -> Any:
    return empty(x, (*x.shape[:-1], outs // 2 if activation in _GATED else outs))


class _Ends:
    """What goes with the outputs from ``first`` on of a row of ``out``: the kernel's arguments around its sizes."""

    def __init__(
        self, out: Any, first: int, bias: Any, residual: Any, activation: str | None, norm: Any
    ):
        kind_of_norm, gain, shift, eps = norm or (None, None, None, 0.0)
        gain, shift, bias = packed(gain), packed(shift), packed(bias)
        self.gated = activation in _GATED
        self.arrays = (bias, packed(residual), out, gain, shift, eps)
        self.place = (first, out.shape[-1])
        self.kinds = (_NORMS[kind_of_norm], _kind(gain), _kind(bias), _ACTIVATIONS[activation])


def _launch(x: Any, weight: Any, param: str, outs: int, ends: _Ends) -> None:
    rows, width, made = math.prod(x.shape[:-1]), x.shape[-1], outs // 2 if ends.gated else outs
    arrays, x_bytes = (x, weight, *ends.arrays), _x_bytes(x, rows)
    if _by_tensor_cores(x, rows, weight, param):
        shared = x_bytes + _SUMS * -(-rows // 8)
        blocks = min(-(-made // (8 if ends.gated else 16)), _resident(x, 2, shared))
        sizes = (rows, width, outs, _tensor_room(width))
        _tensor(blocks, 32 * WARPS, *arrays, *sizes, *ends.kinds, shared=shared, REAL=param)
        return
    pairs, few = -(-outs // 2), rows <= FEW_ROWS
    busy = not few and pairs >= 2 * WARPS * processors(x)
    warps = 2 * WARPS if busy else WARPS
    shared = x_bytes + _stage_bytes(param, warps)
    resident = _resident(x, _most_blocks(param, few, warps), shared)
    split = _split(pairs, resident * warps, _steps(param, few, width))
    blocks, kernel = min(-(-pairs * split // warps), resident), _few if few else _many
    pitch = weight.shape[1] * weight.itemsize
    kernel(
        blocks, 32 * warps, *arrays, rows, width, outs, pitch, split, *ends.place, *ends.kinds,
        shared=shared, REAL=element(x), PARAM=param,
    )  # fmt: skip


def _most_blocks(param: str, few: bool, warps: int) -> int:
    """How many blocks of a kernel the registers of a processor are enough for."""
    if few:
        return 3 if param in BLOCKED else 4
    return 2 * WARPS // warps


def _steps(param: str, few: bool, width: int) -> int:
    """How many warps could share a pair of outputs. Of blocks and many rows none: no registers are left."""
    if param in BLOCKED:
        return width // _GROUP if few else 1
    return width // (128 if param == "float" else 256)


def _resident(x: Any, most: int, shared: int) -> int:
    """How many blocks the device holds at once: ``most`` a processor, or what shared memory allows."""
    return processors(x) * max(1, min(most, shared_limit(x) // (shared + _STATIC)))


def _kind(x: Any) -> int:
    return 0 if x is None else _KINDS[dtype_name(x.dtype)]


def _split(pairs: int, warps: int, steps: int) -> int:
    """How many warps share the ``steps`` of a pair of outputs: as many as the device's ``warps``
    allow at once, and have a step each."""
    split = 1
    while split < WARPS and 2 * split <= steps and 2 * split * pairs <= warps:
        split *= 2
    return split


def _by_tensor_cores(x: Any, rows: int, weight: Any, param: str) -> bool:
    """Whether a product is wholly in 16 bits, of rows of whole 16 bytes, and for more than two."""
    real = element(x)
    return (
        rows > FEW_ROWS
        and param == real != "float"
        and x.shape[-1] % 8 == 0
        and weight.data.ptr % 16 == 0
        and (real == "half" or compute_capability(x) >= 80)
    )


def _tensor_room(width: int) -> int:
    """Elements from one row of x to the next in shared memory: 64 bytes past a multiple of 128."""
    return -(-(width - 32) // 64) * 64 + 32 if width > 32 else 32


def _x_bytes(x: Any, rows: int) -> int:
    """Bytes of shared memory for x: its rows rounded up as the kernels take them, and kept apart."""
    padded = next(n for n in (1, 2, 4, 8, 16) if n >= rows)
    return padded * _tensor_room(x.shape[-1]) * x.itemsize


def _stage_bytes(param: str, warps: int) -> int:
    """Bytes of shared memory in which warps take apart a group of two rows each: whole 16 bytes."""
    if param not in BLOCKED:
        return 0
    return 2 * warps * -(-format_named(param).row_bytes(_GROUP) // 16) * 16


def _fits(x: Any, param: str) -> bool:
    """Whether the largest block that may be asked for has room for x."""
    rows = max(1, math.prod(x.shape[:-1]))
    most = max(2 * _SUMS, _stage_bytes(param, 2 * WARPS))
    return _x_bytes(x, rows) + most + _STATIC <= shared_limit(x)


def can_decode(x: Any, weight: Any, bias: Any, residual: Any) -> bool:
    """Whether ``decode_linear`` takes these arguments."""
    return (
        math.prod(x.shape[:-1]) <= MOST_ROWS
        and weight.flags.c_contiguous
        and bool(weight.size)
        and (residual is None or residual.dtype == x.dtype)
        and (bias is None or bias.flags.c_contiguous)
        and _fits(x, "")
    )


def after_norm(
    name: str, normed: Any, options: Any, arrays: Any, activation: str | None
) -> Callable[..., Any] | None:
    """A forward of ``linear`` that does the norm in front in the same launch.

    ``name``, ``normed`` and ``options`` are the norm's call, ``arrays`` and ``activation`` those of the
    linear map. None if the kernel cannot take them.
    """
    x, gain, *shift = normed
    weight, bias, residual = (*arrays, None, None)[1:4]
    if not is_element(gain, *shift) or any(s is not None and s.dtype != gain.dtype for s in shift):
        return None
    norm = (name.removesuffix("_norm"), gain, shift[0] if shift else None, options["eps"])
    if isinstance(weight, QuantizedMatrix):
        from .quantized import after_norm as after_norm_in_blocks

        return after_norm_in_blocks(norm, x, weight, bias, residual, activation)
    if not _accepts(x, weight, bias, residual) or not can_decode(x, weight, bias, residual):
        return None

    def forward(_: Any, weight: Any, bias: Any = None, residual: Any = None, **more: Any) -> Any:
        return decode_linear(x, weight, bias, residual, norm=norm, **more)

    return forward


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> Any:  # fmt: skip
    bias_dtype = bias.dtype if bias is not None and needed(needs, 2) else None
    kept = x if needed(needs, 1) else None
    recorded = grad_enabled()
    if can_decode(x, weight, bias, residual) and not (recorded and activation):
        out = decode_linear(x, weight, bias, residual, activation=activation)
        return out, (kept, weight, bias_dtype, None, residual)
    inner = outputs(as_rows(x), weight)
    keep = recorded and activation is not None
    out, saved = inner, None
    if bias is not None or activation is not None or residual is not None:
        flat = None if residual is None else as_rows(packed(residual))
        out = finish(inner, bias, flat, activation, x.dtype, keep_inner=keep)
        saved = inner.reshape(*x.shape[:-1], inner.shape[-1]) if keep else None
    return out.reshape(*x.shape[:-1], out.shape[-1]), (kept, weight, bias_dtype, saved, residual)


def _backward(
    residuals: Any, dout: Any, *, activation: str | None = None, needs: Any = None
) -> Any:
    x, weight, bias_dtype, saved, residual = residuals
    dy = as_rows(packed(dout))
    if activation is not None:
        dy = back(as_rows(saved), dy, activation)
    dx, dweight = gradients(dy, weight, None if x is None else as_rows(x))
    dx = dx.reshape(*dout.shape[:-1], weight.shape[1])
    dbias = None if bias_dtype is None else column_sums(dy, bias_dtype)
    dresidual = None if residual is None else narrow(dout, residual.dtype)
    return dx, dweight, dbias, dresidual


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, needs: Any = None,
) -> bool:  # fmt: skip
    return (
        kind(x) in DEVICES
        and is_element(x, weight, bias, residual)
        and bool(x.size)
        and (weight.dtype == x.dtype or dtype_name(x.dtype) == "float32")
    )


linear.maker("cuda", _forward, _backward, accepts=_accepts)
