"""Where keys and values are kept, as the kernels over a cache take it (kernels/cache.cuh)."""

from typing import Any, NamedTuple

from ..backend import kind
from ..quantized.cache import EightBit, groups_of
from .launch import element, is_element

EIGHT_BIT = "eight_bit"  # the C name of a number of EightBit


class Place(NamedTuple):
    """Where keys and values are kept: in one piece for each row, or in pages by a table. ``key_scales`` and
    ``value_scales`` are those of 8 bit."""

    keys: Any
    values: Any
    table: Any = None
    key_scales: Any = None
    value_scales: Any = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, capacity, K, D)."""
        if self.table is None:
            return self.keys.shape
        rows, pages = self.table.shape
        return rows, pages * self.keys.shape[1], *self.keys.shape[2:]

    @property
    def element(self) -> str:
        """The C name of what keys and values are made of."""
        return EIGHT_BIT if self.key_scales is not None else element(self.keys)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What kernels take of it: where everything lies."""
        return self.keys, self.values, self.key_scales, self.value_scales, self.table

    def arguments(self) -> tuple[Any, ...]:
        """What kernels take of it behind the arrays."""
        x, pages = self.keys, 1 if self.table is None else self.table.shape[1]
        steps, access = _steps(x), min(16, 8 * x.itemsize)  # bytes of eight numbers, or of four
        whole = all(n * x.itemsize % access == 0 for n in (*steps, x.shape[3]))
        wide = whole and _address(x) % access == 0 and _address(self.values) % access == 0
        scale_steps = (0, 0, 0) if self.key_scales is None else _steps(self.key_scales)
        return *steps, *scale_steps, x.shape[1], pages, self.shape[1], wide

    def whole(self) -> bool:
        """Whether the arrays are of one kind and the kernels can step through them."""
        keys, scales = self.keys, self.key_scales
        if isinstance(keys, EightBit) or isinstance(self.values, EightBit):
            return False  # one in 8 bit beside one that is not
        if (
            len(keys.shape) != 4
            or keys.strides[3] != keys.itemsize
            or not _alike(keys, self.values)
        ):
            return False
        if scales is None:
            return is_element(keys)
        wanted, groups = (*keys.shape[:3], groups_of(keys.shape[3])), scales.shape[3]
        near = groups == 1 or scales.strides[3] == scales.itemsize
        return scales.shape == wanted and near and _alike(scales, self.value_scales)


def place_of(keys: Any, values: Any, table: Any = None) -> Place:
    """The place of a cache."""
    if isinstance(keys, EightBit) and isinstance(values, EightBit):
        return Place(keys.values, values.values, table, keys.scales, values.scales)
    return Place(keys, values, table)


def _alike(x: Any, y: Any) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and x.strides == y.strides


def _steps(x: Any) -> tuple[int, ...]:
    """From a row, a place, a head to the next, in elements."""
    return tuple(stride // x.itemsize for stride in x.strides[:3])


def _address(x: Any) -> int:
    return x.data.ptr if kind(x) == "cuda" else x.address
