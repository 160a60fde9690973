"""Sums of arrays of one shape by the library (kernels/cpu/elementwise.cpp)."""

from typing import Any

import numpy

from ..ops import add
from .library import Operation, Record, pointer

_add = Operation("add", "3Pq")  # a, b, out; count


def _accepts(a: Any, b: Any) -> bool:
    return all(
        isinstance(x, numpy.ndarray) and x.dtype == numpy.float32 and x.flags.c_contiguous
        for x in (a, b)
    ) and bool(a.shape == b.shape)


def _forward(a: Any, b: Any) -> Any:
    return add.reference(a, b)  # a sum of its own is quick enough in NumPy


def _plan(out: Any, a: Any, b: Any) -> Record:
    return _add.record((a, b, out), *map(pointer, (a, b, out)), out.size)


add.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
