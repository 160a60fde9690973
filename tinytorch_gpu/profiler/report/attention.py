"""Attention weights of a text, for a picture."""

from dataclasses import dataclass
from typing import Any

import numpy

from ...core.tensor import no_grad
from ...core.transformers import Transformer

MOST_LAYERS, MOST_HEADS, MOST_TOKENS = 4, 8, 64


@dataclass(frozen=True)
class AttentionMaps:
    """``weights`` (heads, T, T) of each of ``layers``, in [0, 1], of the heads called ``heads``."""

    layers: list[int]
    heads: list[int]
    weights: list[numpy.ndarray]


def attention_maps(model: Transformer, ids: Any) -> AttentionMaps:
    """The weights for one text ``ids`` (T,) of up to 64 tokens: of up to four layers from the first to the last,
    and of up to eight heads. A longer text is cut; an empty one is a ValueError."""
    ids = numpy.asarray(ids).reshape(-1)[:MOST_TOKENS]
    if not ids.size:
        raise ValueError("attention needs a text of at least one token")
    training = model.training
    model.eval()
    with no_grad():
        _, weights = model(ids[None], return_attention_weights=True)
    model.train(training)
    layers = _spread(len(weights), MOST_LAYERS)
    heads = _spread(weights[0].shape[1], MOST_HEADS)
    return AttentionMaps(layers, heads, [weights[i].numpy()[0, heads] for i in layers])


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` of ``count`` indices, the first and the last among them."""
    return sorted(set(numpy.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
