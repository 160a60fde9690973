"""Weight: a matrix of logical shape (out, in) over one storage.

The rows of several matrices that the model runs together (query, key and value; gate and up) lie in
one storage and are reached as named groups, so one product serves them all. The storage may lie
either way round in memory; nothing above ``linear`` sees the difference.
"""

from collections.abc import Mapping
from typing import Any

from .backend import assign
from .core.tensor import Parameter, Tensor, as_array, wrap
from .devices import Device


class Weight(Parameter):
    """A Parameter (out, in) whose rows belong to named groups.

    ``groups`` maps each name to its number of rows, in order; None is one group called "weight".
    """

    __slots__ = ("_rows",)

    def __init__(self, data: Any, groups: Mapping[str, int] | None = None, **options: Any):
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
        out = sum(groups.values())
        order = device.weight_order(out, width, dtype)
        return cls(device.empty((out, width), dtype, order), groups)

    @property
    def groups(self) -> dict[str, int]:
        """The number of rows of each group."""
        return {name: rows.stop - rows.start for name, rows in self._rows.items()}

    def rows(self, name: str) -> Any:
        """The raw array (rows, in) of one group: a view, writing to it changes the weight."""
        return self.data[self._rows[name]]

    def matrix(self, name: str) -> Tensor:
        """One group as the course has it: a Tensor (in, rows) to read, or to write in place."""
        view = wrap(self.rows(name).T)
        if self.grad is not None:
            view.grad = wrap(self.grad.data[self._rows[name]].T)
        return view

    def set_matrix(self, name: str, values: Any) -> None:
        """Write ``values`` (in, rows) through to the group; another shape is a ValueError."""
        assign(self.rows(name).T, as_array(values))
