"""Quantized weights as the library multiplies them: the rows of the file, eight and eight interleaved
(kernels/cpu/blocks.h). As many bytes, nothing lost."""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy

from ..quantized import MULTIPLIED, Blocks, is_blocked
from .library import Operation, pointer

_pack = Operation("pack_blocks", "2P3q")  # rows, packed; outs, width, format
_unpack = Operation("unpack_blocks", "3P3q")  # packed, ids, rows; count, width, format

# The numbers of kernels/cpu/storage.h.
FORMATS = {
    "float32": 0, "float16": 1, "bfloat16": 2, "q8_0": 3, "q4_0": 4, "q4_1": 5, "q4_k": 6,
    "q5_k": 7, "q6_k": 8,
}  # fmt: skip
PLAIN = ("float32", "float16", "bfloat16")
MULTIPLIED["cpu"].update(name for name in FORMATS if is_blocked(name))
GROUP = 8  # rows that are interleaved
LAYOUT = "interleaved by 8"


class _Together:
    """Memory for weights, one behind the other in pieces large enough for huge pages: a matrix alone is
    mostly smaller than one, and a step that reads them all would look up thousands of small ones."""

    PIECE = 1 << 24

    def __init__(self) -> None:
        self._lock, self._used = threading.Lock(), 0
        self._piece: Callable[[], Any] = lambda: None  # not held: the arrays in it keep it alive

    def room(self, size: int) -> Any:
        """An uninitialised array of ``size`` bytes; its piece is freed with the last array in it."""
        with self._lock:
            piece = self._piece()
            if piece is None or self._used + size > piece.size:
                # NumPy asks for huge pages for arrays of this size.
                piece, self._used = numpy.empty(max(self.PIECE, size), numpy.uint8), 0
                self._piece = weakref.ref(piece)
            start = self._used
            self._used += -(-size // 64) * 64
            return piece[start : start + size]


_together = _Together()


def pack(rows: Any, form: str, width: int) -> Any:
    """Rows (out, bytes) uint8 of a format, ``width`` weights each, interleaved: uint8 (n,)."""
    rows = numpy.ascontiguousarray(rows)
    outs, size = rows.shape
    packed = _together.room(math.ceil(outs / GROUP) * GROUP * size)
    _pack(packed.size, pointer(rows), pointer(packed), outs, width, FORMATS[form])
    return packed


def unpack(packed: Any, form: str, width: int, size: int, ids: Any) -> Any:
    """The rows ``ids`` (n,) of interleaved ones, as ``pack`` took them: uint8 (n, ``size``)."""
    ids = numpy.ascontiguousarray(ids, numpy.int64)
    rows = numpy.empty((len(ids), size), numpy.uint8)
    fields = (pointer(packed), pointer(ids), pointer(rows), len(ids), width, FORMATS[form])
    _unpack(rows.size, *fields)
    return rows


_packing = threading.Lock()


def interleaved(part: Blocks) -> Any:
    """The bytes of ``part`` interleaved: from the first call on that is how it keeps them."""
    if part.layout != LAYOUT:
        with _packing:
            if part.layout == "rows":
                _interleave(part)
    if part.layout != LAYOUT:
        raise ValueError(f"blocks laid out for another maker: {part.layout}")
    return part.data


def _interleave(part: Blocks) -> None:
    form, (outs, width) = part.format.name, part.shape
    size = part.format.row_bytes(width)

    def rows(data: Any, which: Any) -> Any:
        ids = numpy.arange(outs)[which] if isinstance(which, slice) else which
        return unpack(data, form, width, size, ids)

    part.repack(LAYOUT, pack(part.data, form, width), rows)
