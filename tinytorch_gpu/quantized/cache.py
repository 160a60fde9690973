"""Keys or values in 8 bit: 32 neighbours of a head share a scale, as in Q8_0."""

from typing import Any

import numpy

from .formats import format_named

GROUP = 32


class EightBit:
    """An array (B, capacity, K, D) of numbers in 8 bit, on the host: written by rows, read as float32.

    ``values`` are int8 (B, capacity, K, D), ``scales`` float16 (B, capacity, K, groups): one for ``GROUP``
    neighbours, or for a whole head that they do not divide.
    """

    device_kind = "cpu"
    __slots__ = ("scales", "values")

    def __init__(self, values: Any, scales: Any):
        self.values, self.scales = values, scales

    @classmethod
    def zeros(cls, shape: tuple[int, int, int, int]) -> "EightBit":
        """As many zeros."""
        groups = shape[3] // GROUP if shape[3] % GROUP == 0 else 1
        return cls(numpy.zeros(shape, numpy.int8), numpy.zeros((*shape[:3], groups), numpy.float16))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

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
        if not isinstance(numbers, EightBit):
            numbers = rounded(numpy.asarray(numbers), self.scales.shape[-1])
        self.values[index], self.scales[index] = numbers.values, numbers.scales

    def copy(self) -> "EightBit":
        return EightBit(self.values.copy(), self.scales.copy())

    def moved_to(self, place: Any) -> "EightBit":
        if place.kind != "cpu":
            raise ValueError(f"a cache in 8 bit lives on the CPU, not on {place}")
        return self

    def dequantize(self) -> numpy.ndarray:
        """All of it in float32."""
        groups = self.scales.shape[-1]
        wide = self.values.astype(numpy.float32).reshape(*self.shape[:-1], groups, -1)
        wide *= self.scales[..., None]
        return wide.reshape(self.shape)


def rounded(numbers: numpy.ndarray, groups: int) -> EightBit:
    """``numbers`` (..., D) in 8 bit, the largest of each group being 127. NaN becomes NaN's scale, so that it
    is not lost; what is too large for a float16 scale becomes infinite."""
    apart = numbers.astype(numpy.float32, copy=False).reshape(*numbers.shape[:-1], groups, -1)
    with numpy.errstate(all="ignore"):
        scales = (numpy.abs(apart).max(axis=-1, keepdims=True) / numpy.float32(127)).astype(
            numpy.float16
        )
        inverse = numpy.where(scales > 0, 1 / scales.astype(numpy.float32), 0)
        values = numpy.clip(numpy.rint(apart * inverse), -127, 127).astype(numpy.int8)
    return EightBit(values.reshape(numbers.shape), scales[..., 0])
