"""Generation: the cache of keys and values, and the loop that writes token by token."""

from .cache import Cache, KVCache
from .engine import Step, generate
from .sampler import Sampler, Sampling

__all__ = ["Cache", "KVCache", "Sampler", "Sampling", "Step", "generate"]
