"""Keys or values in 8 bit: 32 neighbours of a head share a scale, as in Q8_0."""

from typing import Any

import numpy

from ..backend import kind, namespace, narrow
from ..devices import Device, device, device_of
from .formats import format_named

GROUP = 32


def groups_of(width: int) -> int:
    """How many groups of numbers with a scale a head of ``width`` has."""
    return width // GROUP if width % GROUP == 0 else 1


class EightBit:
    """An array (B, capacity, K, D) of numbers in 8 bit on any device: written by rows, read as float32.

    ``values`` are int8 (B, capacity, K, D), ``scales`` float16 (B, capacity, K, groups): one for ``GROUP``
    neighbours, or for a whole head that they do not divide.
    """

    device_kind = ""
    __slots__ = ("scales", "values")

    def __new__(cls, values: Any, scales: Any) -> "EightBit":
        # Operations tell by the type where an array lives, so there is a class for each kind.
        where = kind(values)
        found = _classes.get(where)
        if found is None:
            made = type(cls.__name__, (EightBit,), {"device_kind": where, "__slots__": ()})
            found = _classes.setdefault(where, made)
        return object.__new__(found)

    def __init__(self, values: Any, scales: Any):
        self.values, self.scales = values, scales

    @classmethod
    def zeros(cls, shape: tuple[int, int, int, int], place: "str | Device" = "cpu") -> "EightBit":
        """As many zeros. The scales of a head lie one after the other over its places: they are small,
        and a reader of one head has no use for the others'."""
        place, (batch, capacity, heads, width) = device(place), shape
        scales = place.zeros((batch, heads, capacity, groups_of(width)), "float16")
        return cls(place.zeros(shape, "int8"), scales.transpose(0, 2, 1, 3))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def dtype(self) -> Any:
        return format_named("q8_0")

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)

    def __getitem__(self, index: Any) -> "EightBit":
        """Some rows and places: a view."""
        return EightBit(self.values[index], self.scales[index])

    def __setitem__(self, index: Any, numbers: Any) -> None:
        """Write rows and places: rounded to 8 bit, or taken over from another array of this kind."""
        if isinstance(numbers, EightBit):
            numbers = numbers.moved_to(device_of(self.values))
        else:
            numbers = rounded(numbers, self.scales.shape[-1])
        self.values[index], self.scales[index] = numbers.values, numbers.scales

    def copy(self) -> "EightBit":
        return EightBit(self.values.copy(), self.scales.copy())

    __copy__ = copy

    def moved_to(self, place: Any) -> "EightBit":
        """The same numbers on another device; on their own, this very array."""
        if device_of(self.values) == place:
            return self
        return EightBit(place.asarray(self.values), place.asarray(self.scales))

    def get(self) -> "EightBit":
        """A copy on the host."""
        return EightBit(self.values.get(), self.scales.get())

    def dequantize(self) -> Any:
        """All of it in float32."""
        xp, groups = namespace(self.values), self.scales.shape[-1]
        wide = xp.astype(self.values, numpy.float32).reshape(*self.shape[:-1], groups, -1)
        wide *= xp.astype(self.scales, numpy.float32)[..., None]
        return wide.reshape(self.shape)


_classes: dict[str, type[EightBit]] = {}


def rounded(numbers: Any, groups: int) -> EightBit:
    """``numbers`` (..., D) in 8 bit, the largest of each group being 127. NaN becomes NaN's scale, so that it
    is not lost; what is too large for a float16 scale becomes infinite."""
    xp = namespace(numbers)
    apart = narrow(numbers, numpy.float32).reshape(*numbers.shape[:-1], groups, -1)
    with numpy.errstate(all="ignore"):
        largest = xp.max(xp.abs(apart), axis=-1, keepdims=True)
        scales = xp.astype(largest / numpy.float32(127), numpy.float16)
        wide = xp.astype(scales, numpy.float32)
        inverse = xp.where(wide > 0, 1 / wide, xp.zeros_like(wide))
        integers = xp.where(inverse > 0, xp.rint(apart * inverse), xp.zeros_like(apart))
        values = xp.astype(xp.clip(integers, -127, 127), numpy.int8)
    return EightBit(values.reshape(numbers.shape), scales[..., 0])
