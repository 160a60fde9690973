"""What the makers share: which arrays they take, and blocks of rows that stay in cache."""

import math
from collections.abc import Iterator
from typing import Any

import numpy

_SINGLE, _DOUBLE = numpy.dtype("float32"), numpy.dtype("float64")

# Rows are worked on in blocks of about this many float32 values: 512 KB stay in a core's caches. Threads meet
# between the calls of a block, so that smaller ones cost more than they save.
BLOCK = 1 << 17


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


def row_blocks(rows: int, width: int, block: int = BLOCK) -> Iterator[slice]:
    """Slices over ``rows`` rows of ``width`` values that each fit in cache."""
    step = max(1, block // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scratch(rows: int, width: int, dtype: Any, count: int, block: int = BLOCK) -> list[Any]:
    """``count`` buffers, each as large as a slice of ``row_blocks``."""
    step = min(rows, max(1, block // max(width, 1)))
    return [numpy.empty((step, width), dtype) for _ in range(count)]


def flat_views(*arrays: Any) -> list[Any] | None:
    """The arrays (None counts) as 1-D views in the same order, or None if they lie in memory in
    different ways."""
    for x in arrays:
        if x is not None and not x.flags.c_contiguous:
            break
    else:
        return [x if x is None or x.ndim == 1 else x.reshape(-1) for x in arrays]
    if all(x is None or x.flags.f_contiguous for x in arrays):
        return [x if x is None else x.T.reshape(-1) for x in arrays]
    return None


def column_sums(rows: Any) -> Any:
    """The sum of (N, C) over its rows: a product with ones is the quickest way."""
    return numpy.ones(len(rows), rows.dtype) @ rows


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to some 64 MB, for the next arrays.

    glibc gives free memory back to the system, which must clear it page by page when it is asked
    for again: in training a small model that took a third of a step. How much glibc keeps follows from
    the largest block below 32 MB that a program has freed; so one is freed here. It is never
    touched, and costs no memory. Other C libraries are not affected.
    """
    numpy.empty((1 << 25) - (1 << 16), numpy.uint8)
