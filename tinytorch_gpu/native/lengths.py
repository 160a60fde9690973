"""Counting the tokens of a step (kernels/cpu/lengths.cpp)."""

from typing import Any

from ..ops import advance
from .library import Operation, pointer

_advance = Operation("advance", "2P2q")  # starts, ends; rows, count


def _accepts(starts: Any, ends: Any, *, count: int) -> bool:
    return all(x.dtype.name == "int64" and x.flags.c_contiguous for x in (starts, ends))


def _fields(starts: Any, ends: Any, count: int) -> tuple[int, ...]:
    return pointer(starts), pointer(ends), starts.size, count


def _forward(starts: Any, ends: Any, *, count: int) -> Any:
    _advance(starts.size, *_fields(starts, ends, count))
    return ends


def _plan(out: Any, starts: Any, ends: Any, *, count: int) -> Any:
    return _advance.record((starts, ends), *_fields(starts, ends, count))


advance.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
