"""Text to token ids and back: a model file's own tokenizer, and the course's two."""

from .course import BPETokenizer, CharTokenizer, OptimizedTokenizer, tokenize
from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = [
    "BPETokenizer",
    "CharTokenizer",
    "OptimizedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "tokenize",
]
