"""A stored tensor in floating point, a few rows at a time."""

from collections.abc import Iterator

import numpy

from ..quantized import FORMATS, Format
from ..quantized.matrix import DECODED
from .errors import ModelFileError


def stored_format(name: str, tensor: str) -> Format:
    """Return the format called ``name``; an unsupported one is a ModelFileError."""
    if name not in FORMATS:
        raise ModelFileError(
            f"tensor {tensor!r} is stored as {name}; supported are {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def decoded_blocks(
    raw: numpy.ndarray, form: Format, shape: tuple[int, ...], multiple: int = 1
) -> Iterator[tuple[int, numpy.ndarray]]:
    """Yield (first row, rows) of a stored tensor of one or two dimensions.

    raw: all its bytes (uint8). The rows come as arrays (n, columns) of about ``DECODED``
    weights, n a multiple of ``multiple`` (the last block may be shorter); a tensor of one
    dimension comes whole.
    """
    if len(shape) == 1:
        yield 0, form.decode(raw.reshape(-1, form.nbytes)).reshape(shape)
        return
    rows, columns = shape
    row_bytes = form.row_bytes(columns)
    step = max(DECODED // max(columns, 1) // multiple, 1) * multiple
    for first in range(0, rows, step):
        count = min(step, rows - first)
        part = raw[first * row_bytes : (first + count) * row_bytes]
        yield first, form.decode(part.reshape(-1, form.nbytes)).reshape(count, columns)
