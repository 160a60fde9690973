"""Tokenizers: their speed, and what they make of a text."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from .common import milliseconds


class TokenizationProfiler:
    """How fast tokenizers are, and how much they compress."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def measure_tokenization_speed(
        self, tokenizer: Any, texts: Sequence[str], tokenizer_name: str
    ) -> dict[str, Any]:
        """Encode all texts and say how many there were of everything, and how many a second."""
        began = time.perf_counter()
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        spent = max(time.perf_counter() - began, 1e-9)
        characters, tokens = sum(map(len, texts)), sum(map(len, encoded))
        each = tokens / max(len(texts), 1)
        return {
            "tokenizer_name": tokenizer_name, "total_time_sec": spent, "total_texts": len(texts),
            "total_characters": characters, "total_tokens": tokens,
            "texts_per_second": len(texts) / spent, "chars_per_second": characters / spent,
            "tokens_per_second": tokens / spent, "avg_tokens_per_text": each, "avg_sequence_length": each,
            "compression_ratio": characters / max(tokens, 1),
        }  # fmt: skip

    def compare_tokenizers(self, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Characters against byte pairs learned from the first ten texts."""
        from ...tokenizers import BPETokenizer, CharTokenizer

        pairs = BPETokenizer(vocab_size=400)  # 256 of them are bytes
        pairs.train(list(texts[:10]))
        found = {
            name: self.measure_tokenization_speed(tokenizer, texts, name)
            for name, tokenizer in (("Character", CharTokenizer()), ("BPE", pairs))
        }
        self.results["comparison"] = found
        return found

    def analyze_memory_scaling(
        self, tokenizer: Any, text_lengths: Iterable[int]
    ) -> list[dict[str, Any]]:
        """Texts of each length: their tokens, the time, and the bytes of the text and of its ids (int64)."""
        found = []
        for length in text_lengths:
            text = ("Hello world! " * (length // 13 + 1))[:length]
            spent = milliseconds(lambda t=text: tokenizer.encode(t, add_special_tokens=False))
            count = len(tokenizer.encode(text, add_special_tokens=False))
            text_bytes, token_bytes = len(text.encode()), 8 * count
            found.append({
                "text_length": length, "num_tokens": count, "time_ms": spent,
                "memory_chars_bytes": text_bytes, "memory_tokens_bytes": token_bytes,
                "total_memory_bytes": text_bytes + token_bytes,
            })  # fmt: skip
        return found
