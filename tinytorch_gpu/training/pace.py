"""How much of what a device can do a training step uses."""

import time
from typing import Any

import numpy

from ..config import TransformerConfig
from ..devices import Device


def flops_per_token(
    config: TransformerConfig, parameters: int, length: int, frozen: int = 0
) -> int:
    """Floating-point operations of forward and backward for one token: six for each parameter that is
    multiplied with (an embedding that is only looked up is not), and twelve for each head element and
    key of attention, of which a causal model needs half (Chowdhery et al. 2022, appendix B, without the half).
    ``frozen`` of the parameters have no gradient, which saves two each."""
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    if config.position == "learned":
        looked_up += config.max_seq_length * config.embed_dim
    seen = length // 2 if config.causal else length
    attention = 12 * config.num_layers * config.num_heads * config.head_size * seen
    return 6 * (parameters - looked_up) - 2 * max(0, frozen - looked_up) + attention


def peak_flops(place: Device, dtype: Any, seconds: float = 0.2) -> float:
    """Floating-point operations a second of this device, by a square matrix product of ``dtype``: the
    best of those that fit into ``seconds``."""
    size = {"cuda": 4096, "cpu": 1024}.get(place.kind, 128)
    values = numpy.random.default_rng(0).standard_normal((size, size))
    with place.active():
        a = place.asarray(values, dtype)
        best, began = 0.0, time.perf_counter()
        while not best or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            place.xp.matmul(a, a)
            place.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
