"""Where tokens stand, and the two ways to tell attention: rotary and relative positions."""

import copy
import math
from typing import Any

import numpy

from .. import ops
from ..backend import compute_dtype, kind, namespace
from ..devices import Device
from .module import Builder, Module
from .tensor import Tensor


class Positions:
    """Where ``count`` new tokens of each row stand: from ``first`` on in all rows, or from ``starts`` (B,), on the
    device, of which ``latest`` is the largest; ``places`` (B, count) on the device says it token by token.

    ``lengths`` (B,) on the device says how many tokens of each row are real, where tokens look both ways;
    ``bias`` (1 or B, H, T, S) is what their distances add to the scores.
    """

    lengths: Any = None
    bias: Tensor | None = None

    def __init__(
        self, first: int, count: int, starts: Any = None, latest: int | None = None,
        places: Any = None,
    ):  # fmt: skip
        self.first, self.count, self.starts = first, count, starts
        self.stop = (first if latest is None else latest) + count
        self._array: Any = places

    def biased(self, bias: Tensor | None) -> "Positions":
        """The same positions with another bias."""
        made = copy.copy(self)
        made.bias = bias
        return made

    def array(self, like: Tensor) -> Any:
        """Integer positions (T,), or (B, T) when rows differ, beside ``like``."""
        if self._array is None:
            place = like.device
            if self.starts is None:
                self._array = place.xp.arange(self.first, self.stop)
            elif self.count == 1:
                self._array = self.starts[:, None]
            else:
                self._array = self.starts[:, None] + place.xp.arange(self.count)[None, :]
        return self._array


class Rotary(Module):
    """The tables of rotary positions (Su et al. 2021), grown as far as positions are used."""

    def __init__(self, config: Any, build: Builder | None = None):
        self.config, self.device = config, (build or Builder()).device
        self._tables: tuple[Any, Any] | None = None

    def tables(self, length: int) -> tuple[Any, Any]:
        """cos and sin (at least ``length``, rotary_dim / 2) on the device, in float32."""
        if self._tables is None or self._tables[0].shape[0] < length:
            room = 1 << max(length - 1, 255).bit_length()
            angles = numpy.arange(min(room, max(length, self.config.max_seq_length)))[:, None]
            angles = angles * frequencies(self.config)
            self._tables = (
                self.device.asarray(numpy.cos(angles).astype(numpy.float32)),
                self.device.asarray(numpy.sin(angles).astype(numpy.float32)),
            )
        return self._tables

    def moved(self, place: Device) -> None:
        self.device, self._tables = place, None


def frequencies(config: Any) -> Any:
    """Angle per position (rotary_dim / 2,) of each rotated pair, float64, scaling applied."""
    width = config.rotary
    rates = config.rope_theta ** (-numpy.arange(0, width, 2) / width)
    scaling = config.rope_scaling
    if scaling is None:
        return rates
    if scaling.kind == "linear":
        return rates / scaling.factor
    turns = scaling.original_max_seq_length * rates / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    blend = numpy.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return rates * (blend + (1 - blend) / scaling.factor)


class RelativePositions(Module):
    """What the distance from a query to a key adds to their score: a learned number for each head and
    bucket of distances (Raffel et al. 2020, "T5").

    Near distances have a bucket each, farther ones share buckets that grow with the logarithm; ``distance``
    and all beyond are the last. Where tokens look both ways, half of the buckets are for keys that follow.
    """

    def __init__(
        self, buckets: int, heads: int, distance: int, both_ways: bool, *,
        std: float | None = None, build: Builder | None = None,
    ):  # fmt: skip
        build = build or Builder()
        self.distance, self.device = distance, build.device
        self.weight = build.table(buckets, heads, std, heads**-0.5)
        self._host = distance_buckets(buckets, distance, both_ways)
        self._buckets: Any = None

    def forward(self, positions: Positions, keys: int) -> Tensor:
        """The bias (1, H, T, S), or (B, H, T, S) where rows stand apart, of the queries at ``positions``
        for the first ``keys`` keys."""
        if self._buckets is None:
            self._buckets = self.device.asarray(self._host)
        xp = namespace(self._buckets)
        queries = positions.array(self.weight)
        queries = queries[None] if len(queries.shape) == 1 else queries
        far = xp.arange(keys)[None, None, :] - queries[:, :, None]
        far = xp.minimum(xp.maximum(far, -self.distance), self.distance) + self.distance
        ids = xp.reshape(xp.take(self._buckets, xp.reshape(far, (-1,)), axis=0), far.shape)
        compute = compute_dtype(self.weight.dtype, kind(self.weight.data))
        return ops.embedding(ids, self.weight, dtype=compute).permute(0, 3, 1, 2)

    def moved(self, place: Device) -> None:
        self.device, self._buckets = place, None


def distance_buckets(buckets: int, distance: int, both_ways: bool) -> Any:
    """The bucket of each distance (key - query) from -``distance`` to ``distance``, int64.

    The logarithm is rounded as float32 does it, as T5 was trained with.
    """
    far = numpy.arange(-distance, distance + 1)
    found = numpy.zeros_like(far)
    if both_ways:
        buckets //= 2
        found += numpy.where(far > 0, buckets, 0)
        far = abs(far)
    else:
        far = numpy.maximum(-far, 0)
    exact = buckets // 2
    ratio = numpy.maximum(far, exact).astype(numpy.float32) / numpy.float32(exact)
    steps = numpy.log(ratio) / numpy.float32(math.log(distance / exact))
    shared = exact + (steps * numpy.float32(buckets - exact)).astype(numpy.int64)
    return found + numpy.where(far < exact, far, numpy.minimum(shared, buckets - 1))
