"""QuantizedMatrix: a weight that stays in blocks of a few bits, in memory and in arithmetic."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy

from ..backend import float_dtype, kind, namespace
from ..devices import Device, device_of
from .formats import Format, format_named

DECODED = (
    1 << 18
)  # weights at a time: 1 MB in float32, and its temporaries, fit in a core's L2 cache

Unpack = Callable[[Any, Any], Any]


class Blocks:
    """Rows (out, in) of one format: ``data`` is uint8 (out, bytes of a row), on any device.

    ``layout`` names how ``data`` is arranged. "rows" is the file's own; a maker that wants another one
    calls ``repack`` once.
    """

    __slots__ = ("_unpack", "data", "format", "layout", "shape")

    def __init__(self, format: Format | str, data: Any, width: int | None = None):
        self.format = format if isinstance(format, Format) else format_named(format)
        if str(data.dtype) != "uint8" or len(data.shape) != 2:
            raise ValueError(f"blocks must be uint8 (out, bytes), not {data.dtype} {data.shape}")
        width = (
            data.shape[1] // self.format.nbytes * self.format.elements if width is None else width
        )
        wanted = self.format.row_bytes(width)
        if data.shape[1] != wanted:
            raise ValueError(
                f"a row of {width} weights in {self.format} has {wanted} bytes, not {data.shape[1]}"
            )
        self.data, self.shape = data, (int(data.shape[0]), width)
        self.layout = "rows"
        self._unpack: Unpack | None = None

    def repack(self, layout: str, data: Any, unpack: Unpack) -> None:
        """Keep ``data`` instead: the same weights in a maker's ``layout``.

        ``unpack(data, rows)`` returns the rows (a slice, or integers) as the file has them, uint8
        (n, bytes of a row), exactly.
        """
        self.data, self.layout, self._unpack = data, layout, unpack

    def unpacked(self, rows: Any = slice(None)) -> Any:
        """The bytes of ``rows`` as the file has them: a view of ``data`` if it has that layout."""
        if self._unpack is not None:
            return self._unpack(self.data, rows)
        if isinstance(rows, slice):
            return self.data[rows]
        return namespace(self.data).take(self.data, rows, axis=0)

    def __getitem__(self, rows: slice) -> "Blocks":
        return Blocks(self.format, self.unpacked(rows), self.shape[1])

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def decode(self, rows: Any = slice(None)) -> numpy.ndarray:
        """``rows`` in floating point on the host."""
        raw = self.unpacked(rows)
        raw = raw if isinstance(raw, numpy.ndarray) else raw.get()
        made = self.format.decode(numpy.ascontiguousarray(raw).reshape(-1, self.format.nbytes))
        return made.reshape(raw.shape[0], self.shape[1])


class QuantizedMatrix:
    """Weights (out, in), each row in blocks; a matrix to multiply with and to read, not to write.

    ``parts`` are row ranges of one format each, one below the other: one in general, several where a
    file stores in different formats what the model runs together. It looks like an array as far
    as operations ask: ``shape``, ``dtype`` (its ``Format``), ``T``, rows by slice; NumPy and
    ``dequantize`` read it as floats. It has no gradient.
    """

    __slots__ = ("_turned", "parts")
    device_kind = ""
    parts: tuple[Blocks, ...]

    def __new__(cls, parts: Any, turned: bool = False) -> "QuantizedMatrix":
        # Operations tell by the type where an array lives, so there is a class for each kind.
        where = kind(parts[0].data if not isinstance(parts, Blocks) else parts.data)
        found = _classes.get(where)
        if found is None:
            made = type(cls.__name__, (QuantizedMatrix,), {"device_kind": where, "__slots__": ()})
            found = _classes.setdefault(where, made)
        return object.__new__(found)

    def __init__(self, parts: Blocks | Sequence[Blocks], turned: bool = False):
        parts = (parts,) if isinstance(parts, Blocks) else tuple(parts)
        widths = {part.shape[1] for part in parts}
        if len(widths) != 1:
            raise ValueError(f"parts of one matrix must have one width, not {sorted(widths)}")
        self.parts, self._turned = parts, turned

    @classmethod
    def empty(
        cls, place: Device, groups: Sequence[tuple[Format, int]], width: int
    ) -> "QuantizedMatrix":
        """Allocate (format, rows) one below the other; neighbours of one format are one part."""
        merged: list[tuple[Format, int]] = []
        for form, rows in groups:
            if merged and merged[-1][0] == form:
                merged[-1] = (form, merged[-1][1] + rows)
            else:
                merged.append((form, rows))
        return cls(
            [
                Blocks(form, place.empty((rows, form.row_bytes(width)), "uint8"), width)
                for form, rows in merged
            ]
        )

    # --- what it is ---
    @property
    def shape(self) -> tuple[int, int]:
        out, width = sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]
        return (width, out) if self._turned else (out, width)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def size(self) -> int:
        """Number of weights."""
        out, width = self.shape
        return out * width

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for part in self.parts)

    @property
    def turned(self) -> bool:
        """Whether this is the transpose (in, out) of what is stored."""
        return self._turned

    @property
    def format(self) -> Format | None:
        """The format, None if the parts have several."""
        return self.parts[0].format if len(self.parts) == 1 else None

    @property
    def blocks(self) -> Any:
        """The bytes uint8 (out, bytes of a row) of a matrix of one format."""
        if len(self.parts) != 1:
            raise ValueError(f"a matrix in {self.dtype} has blocks of several formats")
        return self.parts[0].unpacked()

    @property
    def dtype(self) -> Format:
        if len(self.parts) == 1:
            return self.parts[0].format
        names = dict.fromkeys(part.format.name for part in self.parts)
        return Format("+".join(names), "", 1, 0, _no_decoding)

    @property
    def device(self) -> Device:
        return device_of(self.parts[0].data)

    def __repr__(self) -> str:
        return f"QuantizedMatrix({self.shape}, {self.dtype}, {self.nbytes} bytes)"

    def __len__(self) -> int:
        return self.shape[0]

    # --- parts of it ---
    @property
    def T(self) -> "QuantizedMatrix":  # noqa: N802 - everybody's name
        return QuantizedMatrix(self.parts, not self._turned)

    def __getitem__(self, rows: Any) -> "QuantizedMatrix":
        """The rows of a slice without a step, in blocks still, sharing memory where it can."""
        rows = rows[0] if isinstance(rows, tuple) and rows[1:] in ((), (...,)) else rows
        if self._turned or not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"a matrix in {self.dtype} gives rows by slice only, not by {rows!r}")
        return QuantizedMatrix([part[inner] for part, inner, _ in self.overlaps(rows)])

    def overlaps(self, rows: slice = slice(None)) -> Iterator[tuple[Blocks, slice, slice]]:
        """Each part that ``rows`` meet: the part, its rows, and their places among ``rows``."""
        total = sum(part.shape[0] for part in self.parts)
        low, high, _ = rows.indices(total)
        start = 0
        for part in self.parts:
            stop = start + part.shape[0]
            first, last = max(low, start), min(high, stop)
            if first < last or (low >= high and start <= low <= stop):
                last = max(first, last)
                yield part, slice(first - start, last - start), slice(first - low, last - low)
                if low >= high:
                    return
            start = stop

    def __setitem__(self, where: Any, values: Any) -> None:
        """Copy a matrix of the same formats in; anything else is refused."""
        whole = where is Ellipsis or where == slice(None)
        if not whole or not isinstance(values, QuantizedMatrix) or values.dtype != self.dtype:
            raise TypeError(
                f"a weight in {self.dtype} cannot be written to: dequantize the model first, "
                "model.to('float32')"
            )
        if values.shape != self.shape:
            raise ValueError(f"cannot put a matrix of {values.shape} into one of {self.shape}")
        for own, other in zip(self.parts, values.parts, strict=True):
            own.unpacked()[...] = own_place(own).asarray(other.unpacked())

    # --- out of it ---
    def decoded(self, rows: Any = slice(None), most: int = DECODED) -> Iterator[tuple[slice, Any]]:
        """Yield (places among ``rows``, their weights) a cache-sized piece at a time, on the host."""
        width = self.parts[0].shape[1]
        step = max(1, most // max(width, 1))
        for part, inner, outer in self.overlaps(rows):
            for first in range(inner.start, inner.stop, step):
                last = min(first + step, inner.stop)
                at = outer.start + first - inner.start
                yield slice(at, at + last - first), part.decode(slice(first, last))

    def dequantize(self, rows: slice = slice(None), dtype: Any = "float32") -> Any:
        """``rows`` (n, in), by default all, as an array of ``dtype`` on this device."""
        count = len(range(*rows.indices(sum(part.shape[0] for part in self.parts))))
        made = numpy.empty((count, self.parts[0].shape[1]), float_dtype(dtype))
        for places, values in self.decoded(rows):
            made[places] = values
        return self.device.asarray(made.T if self._turned else made)

    def take(self, ids: Any) -> Any:
        """The rows ``ids`` (n,), integers on the host, in float32 on the host: (n, in)."""
        made = numpy.empty((len(ids), self.parts[0].shape[1]), numpy.float32)
        start = 0
        for part in self.parts:
            here = numpy.nonzero((ids >= start) & (ids < start + part.shape[0]))[0]
            if len(here):
                made[here] = part.decode(ids[here] - start)
            start += part.shape[0]
        return made

    def astype(self, dtype: Any, **_: Any) -> Any:
        """All weights as an array of a floating ``dtype``."""
        return self.dequantize(dtype=getattr(dtype, "name", dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> numpy.ndarray:
        made = self.get()
        return made if dtype is None else made.astype(dtype)

    def get(self) -> numpy.ndarray:
        """All weights in float32 on the host."""
        made = numpy.empty((sum(p.shape[0] for p in self.parts), self.parts[0].shape[1]), "float32")
        for places, values in self.decoded():
            made[places] = values
        return made.T if self._turned else made

    def moved_to(self, place: Device) -> "QuantizedMatrix":
        """The same matrix on a device, in the file's layout there; itself if it is there."""
        if place == self.device:
            return self
        parts = [Blocks(p.format, place.asarray(p.unpacked()), p.shape[1]) for p in self.parts]
        return QuantizedMatrix(parts, self._turned)

    def copy(self) -> "QuantizedMatrix":
        parts = [Blocks(p.format, p.unpacked().copy(), p.shape[1]) for p in self.parts]
        return QuantizedMatrix(parts, self._turned)


_classes: dict[str, type[QuantizedMatrix]] = {}


def own_place(part: Blocks) -> Device:
    return device_of(part.data)


def _no_decoding(raw: Any) -> NoReturn:
    raise TypeError("rows of several formats are decoded part by part")
