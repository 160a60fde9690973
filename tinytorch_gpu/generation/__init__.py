"""Generation: the cache of keys and values, and the loop that writes token by token."""

from .cache import Cache, KVCache
from .capture import DecodeStep, capture
from .encoder import embed
from .engine import generate
from .prefix import PrefixCache
from .prompts import Step
from .sampler import Sampler, Sampling
from .speculation import DraftModel, Lookup, Speculation

__all__ = [
    "Cache",
    "DecodeStep",
    "DraftModel",
    "KVCache",
    "Lookup",
    "PrefixCache",
    "Sampler",
    "Sampling",
    "Speculation",
    "Step",
    "capture",
    "embed",
    "generate",
]
