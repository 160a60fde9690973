"""The course's names for tokenizers; their home is ``tinytorch_gpu.tokenizers``."""

from typing import Any

_NAMES = ("BPETokenizer", "CharTokenizer", "OptimizedTokenizer", "tokenize")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from .. import tokenizers

        return getattr(tokenizers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
