"""The keys and values of the tokens so far, for all layers and rows of a batch.

Room for every token is allocated once (untouched memory costs nothing until written). Lengths are
kept twice: on the host for bounds and slices, on the device for kernels.
"""

from typing import Any

import numpy

from .. import ops
from ..backend import assign, compute_dtype, narrow, widen
from ..core.cross_attention import Memory
from ..core.positions import Positions
from ..core.tensor import Tensor, as_array, wrap
from ..devices import Device, device
from ..quantized.cache import EightBit
from ..special import append_rows


class Cache:
    """Keys and values (batch, capacity, kv heads, head dim) of each layer, rows of any lengths.

    A forward pass calls ``begin`` once, ``append`` per layer and ``advance`` at the end; if it
    fails in between, nothing has been counted. ``memory`` is what an encoder-decoder's text is about: what
    its encoder read, with the keys and values of each layer.
    """

    memory: Memory | None = None

    def __init__(
        self, layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int,
        place: "str | Device" = "cpu", dtype: Any = "float32",
    ):  # fmt: skip
        for name, value in (("batch", batch), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"cache {name} must be at least 1, not {value}")
        self.device, self.capacity, self.batch = device(place), capacity, batch
        shape = (batch, capacity, kv_heads, head_dim)
        pairs = [self._pair(shape, dtype) for _ in range(layers)]
        self.keys, self.values = [k for k, _ in pairs], [v for _, v in pairs]
        self.lengths = numpy.zeros(batch, dtype=numpy.int64)
        self._on_device: Any = None
        self._fixed: tuple[Any, Any] | None = None
        self._passes: dict[int, tuple[Any, Any, Any]] = {}
        self._clear_plan()

    @classmethod
    def for_model(
        cls, model: Any, batch: int = 1, capacity: int | None = None, dtype: Any = None
    ) -> "Cache":
        """An empty cache for ``model``, by default for as many tokens as it can look back on, and in the
        dtype that the model computes in."""
        config = model.config
        room = config.max_seq_length if capacity is None else min(capacity, config.max_seq_length)
        return cls(
            config.num_layers, batch, room, config.kv_heads, config.head_size, model.device,
            dtype or compute_dtype(model.dtype, model.device.kind),
        )  # fmt: skip

    def _pair(self, shape: tuple[int, int, int, int], dtype: Any) -> tuple[Any, Any]:
        """Keys and values of one layer. "q8_0" keeps them in 8 bit."""
        if str(dtype) != "q8_0":
            return self.device.cache_pair(*shape, dtype)
        return EightBit.zeros(shape, self.device), EightBit.zeros(shape, self.device)

    def _clear_plan(self) -> None:
        """Forget the pass under way."""
        self._new: Any = None
        self._starts: Any = None
        self._ends: Any = None
        self._uniform = self.stop = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory, used or not."""
        known = [] if self.memory is None else self.memory.known or []
        read = [tensor.data for pair in known for tensor in pair]
        return sum(int(array.nbytes) for array in (*self.keys, *self.values, *read))

    # --- one forward pass ---
    def begin(self, batch: int, count: int, counts: Any = None) -> Positions:
        """Plan to append ``count`` tokens to each row, of which only ``counts[b]`` are real.

        A ValueError if they do not fit. Returns where they stand.
        """
        if batch != self.batch:
            raise ValueError(f"the cache is for a batch of {self.batch}, not {batch}")
        latest = self._room(count)
        self._new = numpy.full(batch, count) if counts is None else numpy.asarray(counts)
        self._uniform = latest
        uniform = counts is None and bool((self.lengths == latest).all())
        self.stop = int((self.lengths + self._new).max())
        if self._fixed is not None and count == 1 and counts is None:
            (self._starts, self._ends), self.stop = self._fixed, self.capacity
            return Positions(0, 1, self._starts, latest)
        if counts is None and count in self._passes:
            return self._begin_fixed(count, latest)
        if uniform:
            self._starts = self._ends = None
            return Positions(latest, count)
        if self._on_device is None:
            self._on_device = self.device.asarray(self.lengths)
        added = count if counts is None else self.device.asarray(self._new)
        self._starts, self._ends = self._on_device, self._on_device + added
        return Positions(0, count, self._starts, latest)

    def _begin_fixed(self, count: int, latest: int) -> Positions:
        """The same, told by arrays that stay where they are."""
        starts, ends, places = self._passes[count]
        ahead = self.lengths[:, None] + numpy.arange(count + 1)
        for array, values in ((starts, ahead[:, 0]), (ends, ahead[:, -1]), (places, ahead[:, :-1])):
            array[...] = self.device.asarray(values)
        (self._starts, self._ends), self.stop = (starts, ends), self.capacity
        return Positions(0, count, starts, latest, places)

    def _room(self, count: int) -> int:
        """The longest length held; a ValueError if ``count`` more tokens do not fit."""
        latest = int(self.lengths.max())
        if latest + count > self.capacity:
            raise ValueError(
                f"{count} more tokens do not fit: the cache holds {latest} of {self.capacity}"
            )
        return latest

    def arrays(self, layer: int) -> tuple[Any, Any, Any, Any]:
        """Keys and values (B, capacity, K, D) of a layer, and, where rows differ, their lengths
        before and after the pass (B,) on the device; else one int for all, and None."""
        starts = self._uniform if self._starts is None else self._starts
        return self.keys[layer], self.values[layer], starts, self._ends

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Any, Any, Any, Any]:
        """Add the new keys and values (B, T, K, D) of one layer.

        Returns all keys and values so far as Tensors (B, S, K, D), and, where rows differ, their
        lengths after and before (B,) on the device, else None for both.
        """
        old_keys, old_values, starts, ends = self.arrays(layer)
        append_rows(old_keys, keys.data, starts)
        append_rows(old_values, values.data, starts)
        known = [old[:, : self.stop] for old in (old_keys, old_values)]
        if old_keys.dtype != keys.dtype:
            known = [narrow(widen(x), keys.dtype) for x in known]
        return wrap(known[0]), wrap(known[1]), ends, self._starts

    def advance(self) -> None:
        """Count the planned tokens, now that every layer has them."""
        if self._fixed is not None and self._starts is self._fixed[0]:
            ops.advance(*self._fixed, count=1)
            self.lengths, self._on_device = self.lengths + 1, None
            self._clear_plan()
        elif self._fixed is not None or self._passes:
            self._set_lengths(slice(None), self.lengths + self._new)
        else:
            self.lengths = self.lengths + self._new
            self._on_device = self._ends
            self._clear_plan()

    # --- a step that is repeated with the same shapes ---
    def fix(self) -> None:
        """Let single-token passes keep their shapes from now on.

        Their lengths and positions are read from two arrays on the device that stay where they
        are, and attention looks through the whole capacity.
        """
        if self._fixed is None:
            starts, ends = self.lengths.copy(), self.lengths + 1
            self._fixed = self.device.asarray(starts), self.device.asarray(ends)

    def fix_pass(self, count: int) -> bool:
        """Let passes of ``count`` tokens of each row keep their shapes too: what is told of places is written
        before each of them to arrays that stay where they are. False if they do already."""
        if count in self._passes:
            return False
        shapes = ((self.batch,), (self.batch,), (self.batch, count))
        starts, ends, places = (self.device.zeros(shape, "int64") for shape in shapes)
        self._passes[count] = starts, ends, places
        return True

    def unfix(self, count: int = 1) -> None:
        """Let passes of ``count`` tokens take the shapes they need again."""
        if count == 1:
            self._fixed = None
        else:
            self._passes.pop(count, None)

    def check_step(self) -> None:
        """A ValueError if a repeated step finds no room."""
        self._room(1)

    def count_step(self) -> None:
        """Count on the host what a repeated step has counted on the device."""
        self.lengths = self.lengths + 1

    # --- between passes ---
    def rollback(self, count: Any, row: int | None = None) -> None:
        """Forget the last ``count`` tokens of one row, or of all: one number, or one a row (B,)."""
        rows = slice(None) if row is None else slice(row, row + 1)
        count = numpy.asarray(count)
        if (count < 0).any() or (self.lengths[rows] < count).any():
            raise ValueError(
                f"cannot roll back {count.tolist()} of {self.lengths[rows].tolist()} tokens"
            )
        if count.any():
            self._set_lengths(rows, self.lengths[rows] - count)

    def reset(self, row: int | None = None) -> None:
        """Forget all tokens of one row, or of all rows."""
        self._set_lengths(slice(None) if row is None else slice(row, row + 1), 0)

    def _set_lengths(self, rows: slice, lengths: Any) -> None:
        self.lengths = self.lengths.copy()
        self.lengths[rows] = lengths
        self._on_device = None
        if self._fixed is not None:
            for array, values in zip(self._fixed, (self.lengths, self.lengths + 1), strict=True):
                array[...] = self.device.asarray(values)
        self._clear_plan()

    def save(self) -> dict[str, Any]:
        """Return a copy of what is held, for ``restore``; of a text about a source that is a ValueError."""
        if self.memory is not None:
            raise ValueError(
                "the cache of an encoder-decoder belongs to its source: it is not saved"
            )
        stop = int(self.lengths.max())
        return {
            "lengths": self.lengths.copy(),
            "keys": [array[:, :stop].copy() for array in self.keys],
            "values": [array[:, :stop].copy() for array in self.values],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Hold again what ``save`` returned, of one row in every row; a cache of another shape is a
        ValueError."""
        stop, rows = int(saved["lengths"].max()), len(saved["lengths"])
        if len(saved["keys"]) != len(self.keys) or stop > self.capacity:
            raise ValueError(
                f"{len(saved['keys'])} layers of {stop} tokens do not fit a cache of "
                f"{len(self.keys)} layers and {self.capacity} tokens"
            )
        for own, kept in zip((*self.keys, *self.values), (*saved["keys"], *saved["values"]),
                             strict=True):  # fmt: skip
            for row in range(self.batch) if rows == 1 else ():
                assign(own[row : row + 1, :stop], kept)
            if rows != 1:
                assign(own[:, :stop], kept)
        self._set_lengths(slice(None), saved["lengths"])


class KVCache:
    """The course's cache of one attention layer, row by row: arrays are (H, t, D)."""

    def __init__(
        self, max_batch_size: int, max_seq_length: int, num_heads: int, head_dim: int,
        *, place: "str | Device" = "cpu",
    ):  # fmt: skip
        self.max_batch_size, self.max_seq_length = max_batch_size, max_seq_length
        self.num_heads, self.head_dim = num_heads, head_dim
        self._cache = Cache(1, max_batch_size, max_seq_length, num_heads, head_dim, place)

    @property
    def cache_lengths(self) -> Any:
        """Tokens held of each row, on the host."""
        return self._cache.lengths

    def update(self, batch_idx: int, new_keys: Any, new_values: Any) -> tuple[Tensor, Tensor]:
        """Append (H, t, D) keys and values to a row; return all of its so far, (H, length, D).

        An overflow, a wrong shape or row is a ValueError.
        """
        self._check_row(batch_idx)
        keys, values = (as_array(x, place=self._cache.device) for x in (new_keys, new_values))
        heads, count, width = keys.shape if len(keys.shape) == 3 else (0, 0, 0)
        if (heads, width) != (self.num_heads, self.head_dim) or keys.shape != values.shape:
            raise ValueError(
                f"keys {keys.shape} and values {values.shape} must both be "
                f"({self.num_heads}, t, {self.head_dim})"
            )
        start = int(self.cache_lengths[batch_idx])
        end = start + count
        if end > self.max_seq_length:
            raise ValueError(
                f"row {batch_idx} holds {start} tokens: {count} more exceed max_seq_length "
                f"({self.max_seq_length})"
            )
        found = []
        for store, new in ((self._cache.keys[0], keys), (self._cache.values[0], values)):
            store[batch_idx, start:end] = new.transpose(1, 0, 2)
            found.append(Tensor(store[batch_idx, :end].transpose(1, 0, 2)))
        self._cache._set_lengths(slice(batch_idx, batch_idx + 1), end)
        return found[0], found[1]

    def reset(self, batch_idx: int | None = None) -> None:
        """Forget one row, or all."""
        if batch_idx is not None:
            self._check_row(batch_idx)
        self._cache.reset(batch_idx)

    def _check_row(self, batch_idx: int) -> None:
        if not 0 <= batch_idx < self.max_batch_size:
            raise ValueError(f"batch_idx {batch_idx} is outside 0..{self.max_batch_size - 1}")

    def get_memory_usage(self) -> dict[str, Any]:
        """Size in MB and the share in use."""
        total = self._cache.nbytes / 2**20
        room = self.max_batch_size * self.max_seq_length
        return {
            "total_cache_memory_mb": total,
            "memory_per_sequence_mb": total / self.max_batch_size,
            "max_batch_size": self.max_batch_size,
            "max_seq_length": self.max_seq_length,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "cache_utilization": float(self.cache_lengths.sum()) / room,
        }
