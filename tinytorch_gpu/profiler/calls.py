"""Calls of operations with shapes in place of arrays: what costs, memory and times are sums over.

``walk`` makes them for a model (``Setting``) and a pass through it (``Pass``).
"""

import math
from dataclasses import dataclass, field
from typing import Any

from ..config import TransformerConfig
from .formats import (
    Format,
    activation_format,
    bytes_in_cache,
    bytes_per_weight,
    format_named,
    stored_as,
)

IDS = 8  # token ids and positions are int64


class Array:
    """Something that has a shape and takes memory, or is a view of the ``base`` that does.

    ``kind`` is weight, activation, cache, memory (an encoder's keys and values), table (fixed numbers) or ids.
    """

    __slots__ = ("base", "kind", "name", "shape", "width")

    def __init__(
        self,
        shape: tuple[int, ...],
        width: float,
        kind: str = "activation",
        name: str = "",
        base: "Array | None" = None,
    ):
        self.shape, self.width, self.kind, self.name = shape, width, kind, name
        self.base = None if base is None else base.owner

    @property
    def owner(self) -> "Array":
        """The array whose memory this is."""
        return self if self.base is None else self.base

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that its elements take."""
        return math.ceil(self.size * self.width)

    def __repr__(self) -> str:
        return f"{self.kind}{self.shape}"


@dataclass(eq=False)
class Call:
    """One call of an operation: ``op`` names it, ``role`` is what it is in the model.

    ``keeps`` are the arrays beyond inputs and outputs that it makes and saves for its backward, ``held`` those
    of its inputs that live until then. It is made ``times`` times, once for each layer.
    """

    op: str
    role: str
    part: str
    layer: int | None
    arrays: tuple[Array | None, ...]
    outputs: tuple[Array, ...]
    options: dict[str, Any] = field(default_factory=dict)
    keeps: tuple[Array, ...] = ()
    times: int = 1

    @property
    def weights(self) -> list[Array]:
        """The parameters among its inputs."""
        return [a for a in self.arrays if a is not None and a.kind == "weight"]

    @property
    def differentiable(self) -> list[Array | None]:
        """Its inputs, None in place of those that no gradient goes to."""
        return [a if a and a.kind in ("weight", "activation") else None for a in self.arrays]


@dataclass(frozen=True)
class Setting:
    """A model and how its numbers are stored.

    ``dtype`` is a dtype or a block format of ``FORMATS``; ``where`` the kind of device ("cpu", "cuda"), which
    decides the dtype of activations; ``cache_dtype`` that of keys and values if it is another.
    """

    config: TransformerConfig
    dtype: str = "float32"
    where: str = "cpu"
    cache_dtype: str | None = None

    def __post_init__(self) -> None:
        format_named(self.dtype)
        if self.cache_dtype is not None:
            format_named(self.cache_dtype)

    @property
    def weights(self) -> Format:
        """How matrices are asked for: ``stored_as`` says how each one is."""
        return format_named(self.dtype)

    @property
    def activations(self) -> Format:
        """How activations are stored."""
        return activation_format(self.weights, self.where)

    @property
    def cache(self) -> Format:
        """How keys and values are stored."""
        return self.activations if self.cache_dtype is None else format_named(self.cache_dtype)

    @property
    def cache_width(self) -> float:
        """Bytes of a number of a key or value in the cache."""
        return bytes_in_cache(self.cache, self.config.head_size)

    def weight(self, name: str, *shape: int) -> Array:
        """A parameter: a vector, or a matrix (out, in)."""
        form = stored_as(self.weights, name, shape, self.config.tie_embeddings)
        return Array(shape, bytes_per_weight(form), "weight", name)


@dataclass(frozen=True)
class Pass:
    """One forward pass over ``batch`` rows of ``tokens`` new tokens each.

    ``cached``: through a cache that holds ``past`` tokens of each row. ``gradients``: recorded, for a backward.
    ``last``: logits of the last token of each row only. ``repeat``: one block stands for all, counted
    ``num_layers`` times. ``source``: tokens of what an encoder-decoder reads, by default as many as it
    writes; through a cache they have been read already.
    """

    batch: int
    tokens: int
    past: int = 0
    cached: bool = False
    gradients: bool = False
    last: bool = False
    repeat: bool = True
    source: int | None = None

    @property
    def read(self) -> int:
        """Tokens of the source."""
        return self.past + self.tokens if self.source is None else self.source
