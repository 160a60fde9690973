"""What the array API standard lacks: the error function, sums at indices, appended rows."""

import functools
import importlib
import math
from typing import Any

import numpy

from .backend import DEVICES, kind, namespace


def erf(x: Any) -> Any:
    """Return the error function of ``x``, to the precision of its dtype.

    CuPy has one; elsewhere by the rational approximations of W. J. Cody, "Rational Chebyshev
    approximations for the error function", Math. Comp. 23 (1969).
    """
    if kind(x) == "cuda":
        return importlib.import_module("cupyx.scipy.special").erf(x)
    xp = namespace(x)
    size = xp.abs(x)
    # Clipping keeps the regions that where() throws away from overflowing.
    near = xp.where(size <= 0.46875, x, xp.zeros_like(x))
    small = near * _ratio(near * near, _ERF_SMALL)
    middle = xp.where(
        size < 0.46875, xp.full_like(x, 0.46875), xp.where(size > 4, xp.full_like(x, 4), size)
    )
    tail = xp.exp(-middle * middle) * _ratio(middle, _ERF_MIDDLE)
    far = xp.where(size < 4, xp.full_like(x, 4), xp.where(size > 6, xp.full_like(x, 6), size))
    inverse = 1 / (far * far)
    rest = inverse * _ratio(inverse, _ERF_FAR)
    far_tail = xp.exp(-far * far) / far * (1 / math.sqrt(math.pi) - rest)
    large = xp.sign(x) * (1 - xp.where(size <= 4, tail, far_tail))
    return xp.where(size <= 0.46875, small, large)


# Cody's coefficients, highest power first: numerator, denominator.
_ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2,
     3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
     2.84423683343917062e3),
)  # fmt: skip
_ERF_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
     6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2,
     1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
     3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_ERF_FAR = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1,
     6.05183413124413191e-2, 2.33520497626869185e-3),
)  # fmt: skip


def _ratio(x: Any, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    top, bottom = (functools.reduce(lambda sum_, c: sum_ * x + c, side) for side in coefficients)
    return top / bottom


def scatter_add(rows: int, index: Any, values: Any) -> Any:
    """Return zeros of shape (rows, width) with ``values`` (n, width) added at ``index`` (n,).

    Repeated indices add up, in a fixed order on the CPU.
    """
    xp = namespace(values)
    if xp is numpy:
        return _scatter_add_sorted(rows, index, values)
    if kind(values) in DEVICES:
        total = xp.zeros((rows, values.shape[1]), dtype=values.dtype)
        xp.add.at(total, index, values)
        return total
    places = xp.arange(rows, dtype=index.dtype)
    onehot = xp.astype(places[:, None] == index[None, :], values.dtype)
    return onehot @ values


def add_at(target: Any, index: Any, values: Any) -> None:
    """``target[index] += values`` where an index that comes twice adds twice."""
    if kind(target) in ("cpu", *DEVICES):
        namespace(target).add.at(target, index, values)
    else:
        target[index] = target[index] + values


def append_rows(target: Any, rows: Any, starts: Any) -> None:
    """``target[b, starts[b] : starts[b] + T] = rows[b]`` for each of the B rows (B, T, ...).

    An int for ``starts`` (B,) is the same place in all rows.
    """
    batch, count = rows.shape[:2]
    if isinstance(starts, int):
        target[:, starts : starts + count, ...] = rows
        return
    if kind(target) in DEVICES:
        xp = namespace(rows)
        places = starts[:, None] + xp.arange(count)[None, :]
        target[xp.arange(batch)[:, None], places] = rows
        return
    for row in range(batch):
        start = int(starts[row])
        target[row, start : start + count, ...] = rows[row, ...]


def _scatter_add_sorted(rows: int, index: Any, values: Any) -> Any:
    """Sum runs of equal indices: ``numpy.add.at`` over rows is several times slower."""
    total = numpy.zeros((rows, values.shape[1]), dtype=values.dtype)
    if index.size:
        order = numpy.argsort(index, kind="stable")
        found, starts = numpy.unique(index[order], return_index=True)
        total[found] = numpy.add.reduceat(values[order], starts, axis=0)
    return total
