"""Weights as files store them, decoded to floating point a few rows at a time.

The block formats are those of ggml: 32 weights share one float16 scale (and, in Q4_1, one float16
minimum), all multiplied out in float32, so the results equal ggml's bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from .errors import ModelFileError

BLOCK_ELEMENTS = 1 << 18  # 1 MB in float32: a block and its temporaries fit in a core's L2 cache


@dataclass(frozen=True)
class Format:
    """``elements`` weights stored in ``nbytes`` bytes.

    ``decode`` takes bytes (blocks, nbytes) uint8 and returns (blocks, elements) in ``dtype``.
    """

    name: str
    elements: int
    nbytes: int
    decode: Callable[[numpy.ndarray], numpy.ndarray]
    dtype: Any = numpy.float32


def _plain(kind: str) -> Callable[[numpy.ndarray], numpy.ndarray]:
    return lambda raw: raw.view(kind)


def _float16(raw: numpy.ndarray) -> numpy.ndarray:
    return raw.view("<f2").astype(numpy.float32)


def _bfloat16(raw: numpy.ndarray) -> numpy.ndarray:
    # A bfloat16 is the upper half of a float32.
    bits = raw.view("<u2").astype(numpy.uint32)
    bits <<= numpy.uint32(16)
    return bits.view(numpy.float32)


def _q8_0(raw: numpy.ndarray) -> numpy.ndarray:
    weights = raw[:, 2:].view(numpy.int8).astype(numpy.float32)
    weights *= _half(raw, 0)
    return weights


def _q4_0(raw: numpy.ndarray) -> numpy.ndarray:
    weights = _nibbles(raw[:, 2:])
    weights -= numpy.float32(8)
    weights *= _half(raw, 0)
    return weights


def _q4_1(raw: numpy.ndarray) -> numpy.ndarray:
    weights = _nibbles(raw[:, 4:])
    weights *= _half(raw, 0)
    weights += _half(raw, 2)
    return weights


def _half(raw: numpy.ndarray, at: int) -> numpy.ndarray:
    """Return the float16 at byte ``at`` of every block as a float32 column."""
    return numpy.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(numpy.float32)


def _nibbles(raw: numpy.ndarray) -> numpy.ndarray:
    """Return (blocks, 32) from (blocks, 16): all the low halves of a block, then the high ones."""
    weights = numpy.empty((raw.shape[0], 2, raw.shape[1]), numpy.float32)
    weights[:, 0] = raw & numpy.uint8(15)
    weights[:, 1] = raw >> numpy.uint8(4)
    return weights.reshape(raw.shape[0], -1)


FORMATS = {
    made.name: made
    for made in (
        Format("F32", 1, 4, _plain("<f4")),
        Format("F64", 1, 8, _plain("<f8"), numpy.float64),
        Format("F16", 1, 2, _float16),
        Format("BF16", 1, 2, _bfloat16),
        Format("Q8_0", 32, 34, _q8_0),
        Format("Q4_0", 32, 18, _q4_0),
        Format("Q4_1", 32, 20, _q4_1),
    )
}


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

    raw: all its bytes (uint8). The rows come as arrays (n, columns) of about ``BLOCK_ELEMENTS``
    weights, n a multiple of ``multiple`` (the last block may be shorter); a tensor of one
    dimension comes whole.
    """
    if len(shape) == 1:
        yield 0, form.decode(raw.reshape(-1, form.nbytes)).reshape(shape)
        return
    rows, columns = shape
    row_bytes = columns // form.elements * form.nbytes
    step = max(BLOCK_ELEMENTS // max(columns, 1) // multiple, 1) * multiple
    for first in range(0, rows, step):
        count = min(step, rows - first)
        part = raw[first * row_bytes : (first + count) * row_bytes]
        yield first, form.decode(part.reshape(-1, form.nbytes)).reshape(count, columns)
