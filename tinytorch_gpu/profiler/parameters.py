"""Parameters of a model by component."""

import math
from dataclasses import dataclass
from typing import Any

from ..checkpoint.shapes import block_shapes, outer_shapes
from .calls import Setting

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
    shapes = [
        (_OUTER[full.split(".")[0]], shape, 0) for full, shape in outer_shapes(config).items()
    ]
    shapes += [
        (_PARTS[full.split(".")[2]], shape, 1) for full, shape in block_shapes(config).items()
    ]
    for name, shape, layered in shapes:
        count = math.prod(shape)
        width = (
            4.0
            if len(shape) == 1 and setting.weights.quantized
            else setting.weights.bytes_per_weight
        )
        times = config.num_layers if layered else 1
        counts[name] += count * times
        stored[name] += count * times * width
        each[name] += count * layered
    return [Component(n, counts[n], each[n], round(stored[n])) for n in _NAMES if counts[n]]


def count_parameters(setting: Setting) -> int:
    """All parameters, tied ones once."""
    return sum(part.count for part in parameters(setting))
