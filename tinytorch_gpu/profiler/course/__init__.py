"""The course's profilers by its names: thin calls of the accounting, and real measurements.

Their keys are the course's. Sizes are in MB of 2**20 bytes, times medians in milliseconds.
"""

from .attention import AttentionProfiler
from .embedding import EmbeddingProfiler
from .module import Profiler
from .tokenization import TokenizationProfiler
from .transformer import TransformerProfiler

__all__ = [
    "AttentionProfiler", "EmbeddingProfiler", "Profiler", "TokenizationProfiler", "TransformerProfiler",
]  # fmt: skip
