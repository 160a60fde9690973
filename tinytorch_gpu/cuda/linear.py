"""Linear maps: our own kernel for the few rows of a decode step, cuBLAS for the many of a prompt.

cuBLAS may not run inside a stream capture (CuPy refuses it), and it reads a 16-bit or quantized weight
only after it has been widened; kernels/linear.cu does neither and takes norm, bias, activation and
residual along.
"""

import math
from collections.abc import Callable
from typing import Any

from ..backend import DEVICES, dtype_name, kind, namespace, narrow
from ..core.tensor import grad_enabled
from ..ops import linear
from .activation import back, column_sums, finish
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors, shared_limit

QUANTIZED = {"q8_0": 34, "q4_0": 18, "q4_1": 20}  # bytes of a block of 32
SOURCE = Source(
    "linear.cu",
    only=lambda v: v["PARAM"] in (*QUANTIZED, v["REAL"]) or v["REAL"] == "float",
    REAL=ELEMENTS.values(),
    PARAM=(*ELEMENTS.values(), *QUANTIZED),
)
_decode = SOURCE.kernel("linear_decode")
MOST_ROWS, WARPS = 16, 8
_ACTIVATIONS = {
    None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "swiglu": 5, "geglu": 6,
}  # fmt: skip
_NORMS = {"layer": 1, "rms": 2}
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
_STAGE = 2 * WARPS * 32  # bytes of shared memory per byte of a block


def decode_linear(
    x: Any, weight: Any, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, norm: tuple[str, Any, Any, float] | None = None,
) -> Any:  # fmt: skip
    """``activation(norm(x) @ weight.T + bias) + residual`` for up to 16 rows, in one launch.

    ``x`` (..., in), ``weight`` (out, in) by rows, dense; ``norm`` is ("layer" or "rms", gain, shift or
    None, eps). The caller has asked ``can_decode``.
    """
    pitch = weight.shape[1] * weight.itemsize
    return _launch(
        x, weight, element(weight), weight.shape[0], pitch, bias, residual, activation, norm
    )


def quantized_linear(
    x: Any, blocks: Any, quantization: str, bias: Any = None, residual: Any = None,
    *, activation: str | None = None, norm: tuple[str, Any, Any, float] | None = None,
) -> Any:  # fmt: skip
    """The same for a weight in GGUF's blocks: ``blocks`` uint8 (out, bytes of a row), in "q8_0",
    "q4_0" or "q4_1". A width that does not fit the bytes, or too many rows, is a ValueError."""
    width = x.shape[-1]
    size = QUANTIZED.get(quantization)
    if size is None:
        raise ValueError(
            f"quantization must be one of {', '.join(QUANTIZED)}, not {quantization!r}"
        )
    if width % 32 or blocks.shape[1] != width // 32 * size:
        raise ValueError(
            f"rows of {blocks.shape[1]} bytes are not {width} weights in {quantization}: "
            f"{size} bytes for 32 are"
        )
    if math.prod(x.shape[:-1]) > MOST_ROWS or not _fits(x, quantization):
        raise ValueError(f"a quantized product takes up to {MOST_ROWS} rows, not {x.shape}")
    return _launch(
        x, blocks, quantization, blocks.shape[0], blocks.shape[1], bias, residual, activation, norm
    )  # fmt: skip


def _launch(
    x: Any, weight: Any, param: str, outs: int, pitch: int, bias: Any, residual: Any,
    activation: str | None, norm: Any,
) -> Any:  # fmt: skip
    width = x.shape[-1]
    made = outs // 2 if activation in ("swiglu", "geglu") else outs
    out = empty(x, (*x.shape[:-1], made))
    rows = math.prod(x.shape[:-1])
    if not out.size:
        return out
    kind_of_norm, gain, shift, eps = norm or (None, None, None, 0.0)
    warps = -(-outs // 2)
    blocks = min(-(-warps // WARPS), 2 * processors(x))
    _decode(
        blocks, 32 * WARPS, packed(x), packed(weight), bias, packed(residual), out, gain, shift, eps,
        rows, width, outs, pitch, _NORMS.get(kind_of_norm or "", 0), _kind(gain), _kind(bias),
        _ACTIVATIONS[activation], shared=_shared(x, rows, param), REAL=element(x), PARAM=param,
    )  # fmt: skip
    return out


def _kind(x: Any) -> int:
    return 0 if x is None else _KINDS[dtype_name(x.dtype)]


def _shared(x: Any, rows: int, param: str) -> int:
    """Bytes of shared memory: x, its rows rounded up as the kernel takes them, and the stages."""
    padded = next(n for n in (1, 2, 4, 8, 16) if n >= rows)
    room = -(-x.shape[-1] // 8) * 8
    return padded * room * x.itemsize + _STAGE * QUANTIZED.get(param, 0)


def _fits(x: Any, param: str) -> bool:
    return _shared(x, max(1, math.prod(x.shape[:-1])), param) <= shared_limit(x)


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


def after_norm(name: str, normed: Any, options: Any, arrays: Any) -> Callable[..., Any] | None:
    """A forward of ``linear`` that does the norm in front in the same launch.

    ``name``, ``normed`` and ``options`` are the norm's call, ``arrays`` those of the linear map. None if
    the kernel cannot take them.
    """
    x, gain, *shift = normed
    weight, bias, residual = (*arrays, None, None)[1:4]
    if not _accepts(x, weight, bias, residual) or not can_decode(x, weight, bias, residual):
        return None
    norm = (name.removesuffix("_norm"), gain, shift[0] if shift else None, options["eps"])

    def forward(_: Any, weight: Any, bias: Any = None, residual: Any = None, **more: Any) -> Any:
        return decode_linear(x, weight, bias, residual, norm=norm, **more)

    return forward


def _forward(
    x: Any, weight: Any, bias: Any = None, residual: Any = None, *, activation: str | None = None
) -> Any:
    bias_dtype = None if bias is None else bias.dtype
    recorded = grad_enabled()
    if can_decode(x, weight, bias, residual) and not (recorded and activation):
        out = decode_linear(x, weight, bias, residual, activation=activation)
        return out, (x, weight, bias_dtype, None, residual)
    rows = x.reshape(-1, x.shape[-1])
    inner = _product(rows, weight.T, x.dtype)
    keep = recorded and activation is not None
    out, saved = inner, None
    if bias is not None or activation is not None or residual is not None:
        flat = None if residual is None else packed(residual).reshape(inner.shape[0], -1)
        out = finish(inner, bias, flat, activation, x.dtype, keep_inner=keep)
        saved = inner.reshape(*x.shape[:-1], -1) if keep else None
    return out.reshape(*x.shape[:-1], out.shape[-1]), (x, weight, bias_dtype, saved, residual)


def _product(a: Any, b: Any, dtype: Any) -> Any:
    """a @ b by cuBLAS in ``dtype``, accumulated in float32."""
    xp = namespace(a)
    return narrow(xp.matmul(narrow(a, dtype), narrow(b, dtype)), dtype)


def _backward(residuals: Any, dout: Any, *, activation: str | None = None) -> Any:
    x, weight, bias_dtype, saved, residual = residuals
    dy = packed(dout).reshape(-1, dout.shape[-1])
    if activation is not None:
        dy = back(saved.reshape(dy.shape[0], -1), dy, activation)
    rows = x.reshape(-1, x.shape[-1])
    dx = _product(dy, weight, x.dtype).reshape(x.shape)
    dweight = _product(dy.T, rows, x.dtype)
    dbias = None if bias_dtype is None else narrow(column_sums(packed(dy)), bias_dtype)
    dresidual = None if residual is None else narrow(dout, residual.dtype)
    return dx, narrow(dweight, weight.dtype), dbias, dresidual


def _accepts(
    x: Any, weight: Any, bias: Any = None, residual: Any = None, *, activation: str | None = None
) -> bool:
    return (
        kind(x) in DEVICES
        and is_element(x, weight, bias, residual)
        and bool(x.size)
        and (weight.dtype == x.dtype or dtype_name(x.dtype) == "float32")
    )


linear.maker("cuda", _forward, _backward, accepts=_accepts)
