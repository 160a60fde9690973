"""The course's names for tokenizers and their profiler; their homes are ``tinytorch_gpu.tokenizers`` and
``tinytorch_gpu.profiler``."""

from typing import Any

_NAMES = ("BPETokenizer", "CharTokenizer", "OptimizedTokenizer", "tokenize")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from .. import tokenizers

        return getattr(tokenizers, name)
    if name == "TokenizationProfiler":
        from ..profiler.course import TokenizationProfiler

        return TokenizationProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
