"""Parameters of a model by component."""

import math
from dataclasses import dataclass
from typing import Any

from ..checkpoint.shapes import block_shapes, outer_shapes
from .calls import Setting
from .formats import bytes_per_weight, stored_as

_PARTS = {"norm1": "norms", "norm2": "norms", "attention": "attention", "ffn": "feed_forward"}
_OUTER = {
    "token_embedding": "token_embedding", "pos_encoding": "position_embedding", "final_norm": "norms",
    "lm_head": "head", "lm_head_bias": "head",
}  # fmt: skip
_NAMES = ("token_embedding", "position_embedding", "attention", "feed_forward", "norms", "head")


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
    outer = {
        name.split(".")[0]: shape
        for name, shape in outer_shapes(config).items()
        if "final" not in name
    }
    norm = {name: shape for name, shape in outer_shapes(config).items() if "final" in name}
    entries = [(_OUTER[name], name, shape, 0) for name, shape in outer.items()]
    entries += [("norms", name, shape, 0) for name, shape in norm.items()]
    entries += [(_PARTS[n.split(".")[2]], n, shape, 1) for n, shape in block_shapes(config).items()]
    for part, name, shape, layered in entries:
        count, times = math.prod(shape), config.num_layers if layered else 1
        # The shapes of all matrices but the tables are (in, out).
        rows = shape if len(shape) == 1 or part.endswith("embedding") else shape[::-1]
        form = stored_as(setting.weights, name, rows, config.tie_embeddings)
        counts[part] += count * times
        stored[part] += count * times * bytes_per_weight(form)
        each[part] += count * layered
    return [Component(n, counts[n], each[n], round(stored[n])) for n in _NAMES if counts[n]]


def count_parameters(setting: Setting) -> int:
    """All parameters, tied ones once."""
    return sum(part.count for part in parameters(setting))
