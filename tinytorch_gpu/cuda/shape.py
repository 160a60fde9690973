"""Rows copied into columns of another matrix: launches of kernels/shape.cu."""

import math
from typing import Any

from ..ops import split_heads
from .launch import ELEMENTS, Source, element, empty, is_element, packed

SOURCE = Source("shape.cu", REAL=ELEMENTS.values())
_copy_rows = SOURCE.kernel("copy_rows", strided=("from", "to"))
_THREADS = 256


def copy_rows(x: Any, out: Any) -> None:
    """Put ``x`` (N, C) into the first columns of ``out`` (N, D) and zeros into its others. Rows of either may
    lie apart."""
    (rows, width), filled, size = x.shape, out.shape[1], x.dtype.itemsize
    pitches = [a.strides[0] // size for a in (x, out)]
    each = 16 // size
    vectors = not any(n % each for n in (width, filled, *pitches)) and not any(
        a.data.ptr % 16 for a in (x, out)
    )
    words = -(-filled // each) if vectors else filled
    across = min(_THREADS, 1 << max(0, words - 1).bit_length())
    down, ahead = _THREADS // across, 2 if vectors else 8
    _copy_rows(
        (-(-rows // down), -(-words // (across * ahead))), (across, down), x, out, rows, width, filled,
        *pitches, vectors, REAL=element(x),
    )  # fmt: skip


def _split(x: Any, *, sizes: tuple[int, int, int]) -> Any:
    return split_heads.reference(x, sizes=sizes)


def _joined(residuals: Any, *gradients: Any, sizes: tuple[int, int, int]) -> Any:
    """The gradients of queries, keys and values side by side again."""
    batch, tokens, _, width = gradients[0].shape
    joined = empty(gradients[0], (batch, tokens, sum(sizes), width))
    rows, start = joined.reshape(batch * tokens, -1), 0
    for gradient in map(packed, gradients):
        columns = math.prod(gradient.shape[2:])
        copy_rows(gradient.reshape(batch * tokens, columns), rows[:, start : start + columns])
        start += columns
    return (joined,)


def _accepts(x: Any, *, sizes: tuple[int, int, int]) -> bool:
    return is_element(x) and bool(x.size)


split_heads.maker("cuda", _split, _joined, _accepts)
