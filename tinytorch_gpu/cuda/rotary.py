"""Launches of kernels/rotary.cu."""

from typing import Any

from ..backend import dtype_name, namespace
from ..ops import rotary
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors

SOURCE = Source("rotary.cu", REAL=ELEMENTS.values())
_turn_heads = SOURCE.kernel("turn_heads")
THREADS = 256
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}


def turn_arguments(cos: Any, sin: Any, positions: Any) -> tuple[Any, ...]:
    """What kernels take of a turn: tables, positions (B, T) or (T,) and what they look like."""
    if cos is None:
        return None, None, None, 0, 0, 0
    if dtype_name(positions.dtype) != "int64":
        positions = namespace(positions).astype(positions, "int64")
    per_batch = positions.shape[1] if len(positions.shape) == 2 else 0
    kind = _KINDS[dtype_name(cos.dtype)]
    return packed(cos), packed(sin), packed(positions), per_batch, cos.shape[1], kind


def takes_tables(cos: Any, sin: Any, positions: Any, width: int) -> bool:
    """Whether kernels take these tables and positions for heads of ``width``."""
    if cos is None:
        return True
    whole = "int" in dtype_name(positions.dtype)
    return whole and is_element(cos) and cos.dtype == sin.dtype and 2 * cos.shape[1] <= width


def _turned(x: Any, cos: Any, sin: Any, positions: Any, heads: int | None, sign: float) -> Any:
    x = packed(x)
    out = empty(x, x.shape)
    cos, sin, positions, per_batch, half, kind = turn_arguments(cos, sin, positions)
    batch, length, count, width = x.shape
    parts = x.size * x.itemsize // 16
    _turn_heads(
        min(max(1, -(-parts // THREADS)), 8 * processors(x)) if x.size else 0, THREADS,
        x, out, cos, sin, positions, per_batch if batch > 1 else 0, half, kind, sign,
        batch * length, max(1, length), count, count if heads is None else heads, width,
        REAL=element(x),
    )  # fmt: skip
    return out


def _forward(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> Any:
    return _turned(x, cos, sin, positions, heads, 1.0), (cos, sin, positions)


def _backward(residuals: Any, dout: Any, *, heads: int | None = None) -> Any:
    cos, sin, positions = residuals
    return _turned(dout, cos, sin, positions, heads, -1.0), None, None, None


def _accepts(x: Any, cos: Any, sin: Any, positions: Any, *, heads: int | None = None) -> bool:
    if len(x.shape) != 4 or not is_element(x) or not takes_tables(cos, sin, positions, x.shape[3]):
        return False
    fits = positions.shape in ((x.shape[1],), (x.shape[0], x.shape[1]))
    return fits and x.shape[0] * x.shape[1] < 2**31 and x.shape[2] * x.shape[3] < 2**31


rotary.maker("cuda", _forward, _backward, accepts=_accepts)
