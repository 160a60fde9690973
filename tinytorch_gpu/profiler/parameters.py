"""Parameters of a model by component."""

import math
from dataclasses import dataclass
from typing import Any

from ..checkpoint.shapes import layered_shapes, outer_shapes
from .calls import Setting
from .formats import bytes_per_weight, stored_as

# The component of a weight, by the part of the model that its name has.
_PARTS = {
    "token_embedding": "token_embedding", "type_embedding": "token_embedding",
    "pos_encoding": "position_embedding", "relative": "position_embedding", "attention": "attention",
    "cross_attention": "cross_attention", "ffn": "feed_forward", "norm1": "norms", "norm2": "norms",
    "cross_norm": "norms", "embedding_norm": "norms", "final_norm": "norms", "lm_head": "head",
    "lm_head_bias": "head",
}  # fmt: skip
_NAMES = tuple(dict.fromkeys(_PARTS.values()))


@dataclass(frozen=True)
class Component:
    """``count`` parameters in ``nbytes`` bytes; ``per_layer`` of them in each layer (0: outside of them)."""

    name: str
    count: int
    per_layer: int
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name, "count": self.count, "per_layer": self.per_layer, "bytes": self.nbytes,
        }  # fmt: skip


def parameters(setting: Setting) -> list[Component]:
    """The components, in the order of a forward pass. A tied head is the token embedding."""
    config = setting.config
    counts = dict.fromkeys(_NAMES, 0)
    each, stored = dict(counts), dict.fromkeys(_NAMES, 0.0)
    entries = [(name, shape, 0, 1) for name, shape in outer_shapes(config).items()]
    for block, layers in layered_shapes(config).values():
        entries += [(name, shape, 1, layers) for name, shape in block.items()]
    for name, shape, layered, times in entries:
        part = next(_PARTS[p] for p in name.split(".") if p in _PARTS)
        count = math.prod(shape)
        # The shapes of all matrices but the tables are (in, out).
        rows = shape if len(shape) == 1 or part.endswith("embedding") else shape[::-1]
        form = stored_as(setting.weights, name.removesuffix(".weight"), rows, config.tie_embeddings)
        counts[part] += count * times
        stored[part] += count * times * bytes_per_weight(form)
        each[part] += count * layered
    return [Component(n, counts[n], each[n], round(stored[n])) for n in _NAMES if counts[n]]


def count_parameters(setting: Setting) -> int:
    """All parameters, tied ones once."""
    return sum(part.count for part in parameters(setting))
