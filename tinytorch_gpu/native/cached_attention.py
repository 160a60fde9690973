"""Attention of a few new tokens through the cache by the library (kernels/cpu/cached_attention.cpp)."""

from typing import Any

import numpy

from ..backend import dtype_name
from ..ops import cached_attention
from ..quantized.cache import EightBit
from .blocks import FORMATS, PLAIN
from .library import Operation, Record, packed, pointer
from .sizes import MOST_TOKENS, parts_size

# packed, keys, values, their scales, places, firsts, lengths, cos, sin, positions, parts, out; batch,
# tokens, heads, kv heads, width, turned, format, stop, capacity, causal, window, two pitches, nine strides; scale
_attend = Operation("cached_attention", "13P22qd")


def _accepts(
    new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, **options: Any,
) -> bool:  # fmt: skip
    batch, tokens, total, width = new.shape
    if new.dtype != numpy.float32 or not new.size or tokens > MOST_TOKENS or (total - heads) % 2:
        return False
    if stop > keys.shape[1] or total <= heads or heads % ((total - heads) // 2):
        return False
    if keys.shape != values.shape or keys.shape[2] != (total - heads) // 2:
        return False
    if not (_fits(keys, new) and _fits(values, new) and keys.dtype == values.dtype):
        return False
    if isinstance(keys, EightBit) and keys.scales.strides != values.scales.strides:
        return False
    if not all(isinstance(x, int) or x is None or x.shape == (batch,) for x in (starts, lengths)):
        return False
    return cos is None or (
        2 * cos.shape[1] <= width
        and cos.shape == sin.shape
        and all(t.dtype == numpy.float32 and t.flags.c_contiguous for t in (cos, sin))
        and positions.shape in ((tokens,), (batch, tokens))
    )


def _fits(cache: Any, new: Any) -> bool:
    """Whether the library reads keys or values of this kind: the numbers of a head lie together."""
    width = cache.shape[3]
    if cache.shape[0] != new.shape[0] or width != new.shape[3]:
        return False
    if isinstance(cache, EightBit):
        numbers, scales = cache.values, cache.scales
        groups = width // 32 if width % 32 == 0 else 1
        return bool(
            numbers.strides[3] == 1 and scales.shape[3] == groups and scales.strides[3] == 2
        )
    return dtype_name(cache.dtype) in PLAIN and bool(cache.strides[3] == cache.itemsize)


def _strides(array: Any) -> list[int]:
    """Row, place and head, in elements."""
    return [stride // array.itemsize for stride in array.strides[:3]]


def _fields(
    out: Any, new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any, sin: Any,
    positions: Any, heads: int, stop: int, causal: bool, scale: float | None, window: int | None,
) -> tuple[Any, Any]:  # fmt: skip
    """What must stay alive, and the fields of the call."""
    batch, tokens, total, width = new.shape
    if isinstance(starts, int):
        places, firsts, places_pitch = numpy.array([starts]), None, 0
    else:
        places, firsts, places_pitch = starts, starts, 1
    key_scales = value_scales = None
    form, scale_strides = dtype_name(keys.dtype), [0, 0, 0]
    if isinstance(keys, EightBit):
        form, scale_strides = "q8_0", _strides(keys.scales)
        key_scales, value_scales = keys.scales, values.scales
        keys, values = keys.values, values.values
    parts = numpy.empty(parts_size(batch, heads, tokens, width), numpy.float32)
    arrays = (
        new, keys, values, key_scales, value_scales, places, firsts, lengths, cos, sin, positions,
        parts, out,
    )  # fmt: skip
    numbers = (
        batch, tokens, heads, (total - heads) // 2, width, 0 if cos is None else 2 * cos.shape[1],
        FORMATS[form], stop, keys.shape[1], causal, -1 if window is None else window, places_pitch,
        0 if positions is None or positions.ndim == 1 else tokens,
        *_strides(keys), *_strides(values), *scale_strides,
        width**-0.5 if scale is None else scale,
    )  # fmt: skip
    return arrays, (*map(pointer, arrays), *numbers)


def _forward(
    new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None, sin: Any = None,
    positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    batch, tokens, _, width = new.shape
    out = numpy.empty((batch, tokens, heads * width), numpy.float32)
    if cos is not None and not 0 <= positions.min() <= positions.max() < len(cos):
        raise IndexError(f"positions {positions} are not all from 0 to {len(cos) - 1}")
    starts = starts if isinstance(starts, int) else _whole(starts)
    given = (packed(new), keys, values, starts, _whole(lengths), cos, sin, _whole(positions))
    _alive, fields = _fields(out, *given, heads, stop, causal, scale, window)
    _attend(2 * batch * tokens * heads * stop * width, *fields)
    return out


def _whole(numbers: Any) -> Any:
    return None if numbers is None else packed(numbers.astype(numpy.int64, copy=False))


def _plan(
    out: Any, new: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Record | None:  # fmt: skip
    """The same from whatever place ``starts`` names by then."""
    if isinstance(starts, int):
        return None
    for array in (new, out, starts, lengths, positions):
        if array is not None and not array.flags.c_contiguous:
            return None
    if any(x is not None and x.dtype != numpy.int64 for x in (starts, lengths, positions)):
        return None
    given = (new, keys, values, starts, lengths, cos, sin, positions)
    alive, fields = _fields(out, *given, heads, stop, causal, scale, window)
    return _attend.record(alive, *fields)


cached_attention.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
