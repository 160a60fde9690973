"""How model files store weights: plain numbers, and ggml's blocks of them.

A block of 32 weights has a float16 scale and, in Q4_1 and Q5_1, a float16 minimum. A block of 256 (the
"K" formats) has eight or sixteen groups, each with a small integer as its scale and minimum, in
units of the block's own. All is multiplied out in float32, in ggml's order, so that the
results equal ggml's bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy

Decode = Callable[[numpy.ndarray], numpy.ndarray]


@dataclass(frozen=True)
class Format:
    """``elements`` weights stored in ``nbytes`` bytes.

    ``name`` is "q4_0" or "float32" (a dtype's own name), ``file_name`` what a GGUF file calls it.
    ``decode`` takes bytes (blocks, nbytes) uint8 and returns (blocks, elements), float32 but for float64.
    ``halves`` are the places of a block's float16 numbers: if they are finite, so are its weights. Of an
    array in blocks this is the ``dtype``.
    """

    name: str
    file_name: str
    elements: int
    nbytes: int
    decode: Decode = field(repr=False, compare=False)
    halves: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    def finite(self, raw: numpy.ndarray) -> bool:
        """Whether all weights of blocks (n, nbytes) uint8 are finite numbers."""
        if not len(raw):
            return True
        # The bits of an exponent are all set in a NaN and in an infinity.
        words = numpy.ascontiguousarray(raw).view("<u2")
        return all((words[:, at // 2] & 0x7C00).max() < 0x7C00 for at in self.halves)

    @property
    def blocked(self) -> bool:
        """Whether several weights share a scale."""
        return self.elements > 1

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of ``width`` weights; a width that is no whole number of blocks is a
        ValueError."""
        if width % self.elements:
            raise ValueError(f"{self.name} rows must be a multiple of {self.elements}, not {width}")
        return width // self.elements * self.nbytes


def _plain(kind: str) -> Decode:
    return lambda raw: raw.view(kind)


def _float16(raw: numpy.ndarray) -> numpy.ndarray:
    return raw.view("<f2").astype(numpy.float32)


def _bfloat16(raw: numpy.ndarray) -> numpy.ndarray:
    # A bfloat16 is the upper half of a float32.
    bits = raw.view("<u2").astype(numpy.uint32)
    bits <<= numpy.uint32(16)
    return bits.view(numpy.float32)


# --- blocks of 32 ---


def _half(raw: numpy.ndarray, at: int) -> numpy.ndarray:
    """Return the float16 at byte ``at`` of every block as a float32 column."""
    return numpy.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(numpy.float32)


def _nibbles(raw: numpy.ndarray) -> numpy.ndarray:
    """Return uint8 (blocks, 2 n) from (blocks, n): all the low halves of a block, then the high ones."""
    values = numpy.empty((raw.shape[0], 2, raw.shape[1]), numpy.uint8)
    numpy.bitwise_and(raw, numpy.uint8(15), out=values[:, 0])
    numpy.right_shift(raw, numpy.uint8(4), out=values[:, 1])
    return values.reshape(raw.shape[0], -1)


def _fifth_bits(raw: numpy.ndarray) -> numpy.ndarray:
    """Return (blocks, 32) with bit 4 set where bit i of the four bytes (blocks, 4) is."""
    bits = numpy.unpackbits(numpy.ascontiguousarray(raw), axis=1, bitorder="little")
    bits <<= numpy.uint8(4)
    return bits


def _q8_0(raw: numpy.ndarray) -> numpy.ndarray:
    weights = raw[:, 2:].view(numpy.int8).astype(numpy.float32)
    weights *= _half(raw, 0)
    return weights


def _centred(values: numpy.ndarray, zero: float, scale: numpy.ndarray) -> numpy.ndarray:
    weights = values.astype(numpy.float32)
    weights -= numpy.float32(zero)
    weights *= scale
    return weights


def _raised(values: numpy.ndarray, scale: numpy.ndarray, minimum: numpy.ndarray) -> numpy.ndarray:
    weights = values.astype(numpy.float32)
    weights *= scale
    weights += minimum
    return weights


def _q4_0(raw: numpy.ndarray) -> numpy.ndarray:
    return _centred(_nibbles(raw[:, 2:]), 8, _half(raw, 0))


def _q4_1(raw: numpy.ndarray) -> numpy.ndarray:
    return _raised(_nibbles(raw[:, 4:]), _half(raw, 0), _half(raw, 2))


def _q5_0(raw: numpy.ndarray) -> numpy.ndarray:
    values = _nibbles(raw[:, 6:])
    values |= _fifth_bits(raw[:, 2:6])
    return _centred(values, 16, _half(raw, 0))


def _q5_1(raw: numpy.ndarray) -> numpy.ndarray:
    values = _nibbles(raw[:, 8:])
    values |= _fifth_bits(raw[:, 4:8])
    return _raised(values, _half(raw, 0), _half(raw, 2))


# --- blocks of 256 ---


def _scales_and_minima(raw: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return two (blocks, 8) of 6-bit integers from 12 bytes: 4 low scales, 4 low minima, whose upper
    two bits belong to the other four, and the low four bits of those."""
    low, high, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = numpy.hstack((low & 63, (rest & 15) | (low >> 2 & 48)))
    minima = numpy.hstack((high & 63, (rest >> 4) | (high >> 2 & 48)))
    return scales, minima


def _grouped(raw: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """Eight groups of 32: scale * value - minimum."""
    scales, minima = _scales_and_minima(raw[:, 4:16])
    weights = values.astype(numpy.float32).reshape(-1, 8, 32)
    weights *= (_half(raw, 0) * scales.astype(numpy.float32))[:, :, None]
    weights -= (_half(raw, 2) * minima.astype(numpy.float32))[:, :, None]
    return weights.reshape(-1, 256)


def _pairs(raw: numpy.ndarray) -> numpy.ndarray:
    """Low halves of 32 bytes, then their high ones, and so on: (blocks, 128) to (blocks, 256)."""
    return _nibbles(raw.reshape(-1, 32)).reshape(-1, 256)


def _q4_k(raw: numpy.ndarray) -> numpy.ndarray:
    return _grouped(raw, _pairs(raw[:, 16:]))


def _q5_k(raw: numpy.ndarray) -> numpy.ndarray:
    values = _pairs(raw[:, 48:]).reshape(-1, 8, 32)
    bits = raw[:, 16:48]
    for group in range(8):  # bit ``group`` of byte i belongs to weight i of that group
        values[:, group] |= (bits >> numpy.uint8(group) & numpy.uint8(1)) << numpy.uint8(4)
    return _grouped(raw, values)


def _q6_k(raw: numpy.ndarray) -> numpy.ndarray:
    """Sixteen groups of 16. Each half of a block: 64 bytes of low halves, 32 of upper bit pairs."""
    low = raw[:, :128].reshape(-1, 2, 2, 32)
    upper = raw[:, 128:192].reshape(-1, 2, 32)
    values = numpy.empty((raw.shape[0], 2, 4, 32), numpy.uint8)
    values[:, :, :2], values[:, :, 2:] = low & 15, low >> 4
    for part in range(4):
        values[:, :, part] |= (upper >> numpy.uint8(2 * part) & numpy.uint8(3)) << numpy.uint8(4)
    scales = _half(raw, 208) * raw[:, 192:208].view(numpy.int8).astype(numpy.float32)
    weights = values.astype(numpy.float32).reshape(-1, 16, 16)
    weights -= numpy.float32(32)
    weights *= scales[:, :, None]
    return weights.reshape(-1, 256)


# By the names that GGUF has.
FORMATS = {
    made.file_name: made
    for made in (
        Format("float32", "F32", 1, 4, _plain("<f4")),
        Format("float64", "F64", 1, 8, _plain("<f8")),
        Format("float16", "F16", 1, 2, _float16),
        Format("bfloat16", "BF16", 1, 2, _bfloat16),
        Format("q8_0", "Q8_0", 32, 34, _q8_0, (0,)),
        Format("q4_0", "Q4_0", 32, 18, _q4_0, (0,)),
        Format("q4_1", "Q4_1", 32, 20, _q4_1, (0, 2)),
        Format("q5_0", "Q5_0", 32, 22, _q5_0, (0,)),
        Format("q5_1", "Q5_1", 32, 24, _q5_1, (0, 2)),
        Format("q4_k", "Q4_K", 256, 144, _q4_k, (0, 2)),
        Format("q5_k", "Q5_K", 256, 176, _q5_k, (0, 2)),
        Format("q6_k", "Q6_K", 256, 210, _q6_k, (208,)),
    )
}
_BY_NAME = {form.name: form for form in FORMATS.values()}
# The names of those in blocks.
BLOCKED = tuple(form.name for form in FORMATS.values() if form.blocked)


def format_named(name: Any) -> Format:
    """Return the format called ``name``, as a dtype or as GGUF has it; else a ValueError."""
    found = _BY_NAME.get(str(name).lower()) or FORMATS.get(str(name).upper())
    if found is None:
        raise ValueError(f"unknown format {str(name)!r}; choose one of {', '.join(_BY_NAME)}")
    return found


def is_blocked(name: Any) -> bool:
    """Whether ``name`` (or a dtype) is a format in blocks."""
    return str(name).lower() in BLOCKED
