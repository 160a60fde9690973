"""Weight: a matrix of logical shape (out, in) over one storage.

The rows of several matrices that the model runs together (query, key and value; gate and up) lie in
one storage and are reached as named groups, so one product serves them all. The storage may lie
either way round in memory, or be in blocks of a few bits; nothing above ``linear`` sees the difference.
"""

from collections.abc import Mapping
from typing import Any

from .backend import assign
from .backend import dtype as named_dtype
from .core.tensor import Parameter, Tensor, as_array, wrap
from .devices import Device
from .quantized import Format, QuantizedMatrix, quantize


class Weight(Parameter):
    """A Parameter (out, in) whose rows belong to named groups.

    ``groups`` maps each name to its number of rows, in order; None is one group called "weight".
    One whose ``data`` is a QuantizedMatrix is frozen: it has no gradient, and is not written to.
    """

    __slots__ = ("_rows",)

    def __init__(self, data: Any, groups: Mapping[str, int] | None = None, **options: Any):
        if isinstance(data, QuantizedMatrix):
            options.setdefault("requires_grad", False)
        super().__init__(data, **options)
        out = self.shape[0]
        sizes = dict(groups or {"weight": out})
        if len(self.shape) != 2 or sum(sizes.values()) != out:
            raise ValueError(f"a weight of shape {self.shape} has no row groups {sizes}")
        self._rows, start = {}, 0
        for name, size in sizes.items():
            self._rows[name] = slice(start, start + size)
            start += size

    @classmethod
    def empty(cls, device: Device, groups: Mapping[str, int], width: int, dtype: Any) -> "Weight":
        """Allocate an uninitialised weight the way round that suits the device."""
        weight = cls.pending(groups, width)
        weight.allocate(device, {}, dtype)
        return weight

    @classmethod
    def pending(cls, groups: Mapping[str, int], width: int) -> "Weight":
        """A weight whose storage is chosen later, by ``allocate``."""
        out = sum(groups.values())
        weight = cls(PendingRows((out, width)), groups, requires_grad=False)
        weight.data.weight = weight
        return weight

    def allocate(self, device: Device, formats: Mapping[str, Format], dtype: Any) -> None:
        """Give a pending weight its storage, uninitialised.

        ``formats`` has the format of each group that is not plainly ``dtype``: if one is in blocks, the
        groups keep the formats that they have; else the whole is one array of ``dtype``.
        """
        out, width = self.shape
        if any(form.blocked for form in formats.values()):
            each = [(formats[name], rows) for name, rows in self.groups.items()]
            self.data = QuantizedMatrix.empty(device, each, width)
            self.requires_grad = False
        else:
            self.data = device.empty((out, width), dtype, device.weight_order(out, width, dtype))
            self.requires_grad = True

    @property
    def groups(self) -> dict[str, int]:
        """The number of rows of each group."""
        return {name: rows.stop - rows.start for name, rows in self._rows.items()}

    @property
    def quantized(self) -> bool:
        """Whether it is stored in blocks."""
        return isinstance(self.data, QuantizedMatrix)

    def requires_grad_(self, wanted: bool = True) -> "Weight":
        """As of any Tensor; a weight in blocks has no gradient, and asking for it is a ValueError."""
        if wanted and self.quantized:
            raise ValueError(
                f"a weight in {self.dtype} is frozen: its blocks have no gradient. Train adapters beside "
                "it, or load the model with dtype='float32'"
            )
        super().requires_grad_(wanted)
        return self

    def quantize(self, form: Format) -> None:
        """Store the values in ``form`` from now on, which if it is in blocks freezes them."""
        if not form.blocked:
            self.data = self.data.astype(named_dtype(form.name))
            return
        self.data, self.grad = quantize(self.data, form), None
        self.requires_grad = False

    def rows(self, name: str) -> Any:
        """The raw array (rows, in) of one group: a view, writing to it changes the weight. Of a weight
        in blocks, a QuantizedMatrix, which refuses that."""
        return self.data[self._rows[name]]

    def matrix(self, name: str) -> Tensor:
        """One group as the course has it: a Tensor (in, rows) to read, or to write in place. Of a
        weight in blocks, a copy in float32 that NumPy keeps from being written to."""
        if self.quantized:
            copied = self.data.dequantize(self._rows[name])
            if hasattr(copied, "setflags"):
                copied.setflags(write=False)
            return wrap(copied.T)
        view = wrap(self.rows(name).T)
        if self.grad is not None:
            view.grad = wrap(self.grad.data[self._rows[name]].T)
        return view

    def set_matrix(self, name: str, values: Any) -> None:
        """Write ``values`` (in, rows) through to the group; another shape is a ValueError, a weight in
        blocks a TypeError."""
        assign(self.rows(name).T, as_array(values))


class PendingRows:
    """Rows of a weight that has no storage yet: their shape, and whose they are."""

    __slots__ = ("shape", "start", "turned", "weight")
    dtype = None

    def __init__(
        self, shape: tuple[int, int], weight: Any = None, start: int = 0, turned: bool = False
    ):
        self.shape, self.weight, self.start, self.turned = shape, weight, start, turned

    def __getitem__(self, rows: slice) -> "PendingRows":
        first, last, _ = rows.indices(self.shape[0])
        return PendingRows((last - first, self.shape[1]), self.weight, self.start + first)

    @property
    def T(self) -> "PendingRows":  # noqa: N802 - everybody's name
        return PendingRows(self.shape[::-1], self.weight, self.start, not self.turned)

    @property
    def group(self) -> str:
        """The name of the group that begins where these rows do."""
        return next(name for name, rows in self.weight._rows.items() if rows.start == self.start)
