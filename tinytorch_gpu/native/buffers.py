"""What the makers share: which arrays they take, and blocks of rows that stay in cache."""

import math
from collections.abc import Iterator
from typing import Any

import numpy

_SINGLE, _DOUBLE = numpy.dtype("float32"), numpy.dtype("float64")

# Rows are worked on in blocks of about this many float32 values: 256 KB stays in a core's cache.
BLOCK = 1 << 16


def plain(*arrays: Any) -> bool:
    """Whether all arrays (None counts) are float32 or float64 of one dtype."""
    first = arrays[0].dtype
    if first is not _SINGLE and first not in (_SINGLE, _DOUBLE):
        return False
    for array in arrays:
        if array is not None and array.dtype is not first and array.dtype != first:
            return False
    return True


def rows_of(x: Any) -> Any:
    """``x`` (..., C) as (N, C): a view if its memory allows."""
    width = x.shape[-1]
    return x.reshape(1 if x.size == width else math.prod(x.shape[:-1]), width)


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices over ``rows`` rows of ``width`` values that each fit in cache."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
