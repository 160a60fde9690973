"""Embedding tables and positions."""

from collections.abc import Iterable
from typing import Any

import numpy

from ...core.embeddings import Embedding, LearnedPositionalEmbedding, PositionalEncoding
from ...core.module import megabytes
from ...core.tensor import Tensor
from .common import MB, milliseconds, random_ids


class EmbeddingProfiler:
    """What embedding tables weigh, and how fast rows are looked up."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def measure_lookup_performance(
        self, embedding_layer: Embedding, batch_sizes: Iterable[int], seq_lengths: Iterable[int]
    ) -> dict[str, dict[str, Any]]:
        """Look-ups of each shape, by ``batch_B_seq_T``."""
        found, lengths = {}, list(seq_lengths)
        for batch in batch_sizes:
            for length in lengths:
                ids = random_ids(embedding_layer.vocab_size, batch, length)
                spent = milliseconds(lambda i=ids: embedding_layer(i))
                out = embedding_layer(ids).data.nbytes
                found[f"batch_{batch}_seq_{length}"] = {
                    "batch_size": batch, "seq_length": length, "total_tokens": ids.size,
                    "lookup_time_ms": spent, "tokens_per_second": ids.size / spent * 1e3,
                    "input_memory_mb": ids.nbytes / MB, "output_memory_mb": out / MB,
                    "memory_bandwidth_mb_s": (ids.nbytes + out) / MB / spent * 1e3,
                    "time_per_token_us": spent * 1e3 / ids.size,
                }  # fmt: skip
        return found

    def analyze_memory_scaling(
        self, vocab_sizes: Iterable[int], embedding_dims: Iterable[int]
    ) -> dict[str, dict[str, Any]]:
        """Tables of each size, by ``vocab_V_dim_D``."""
        found, dims = {}, list(embedding_dims)
        for vocab in vocab_sizes:
            for dim in dims:
                table = Embedding(vocab, dim)
                usage, ids = table.get_memory_usage(), random_ids(vocab, 32, 64)
                found[f"vocab_{vocab}_dim_{dim}"] = {
                    "vocab_size": vocab, "embedding_dim": dim,
                    "total_parameters": usage["total_parameters"], "memory_mb": usage["total_memory_mb"],
                    "lookup_time_ms": milliseconds(lambda t=table, i=ids: t(i)),
                }  # fmt: skip
        return found

    def compare_positional_encodings(
        self, seq_length: int = 100, embedding_dim: int = 256
    ) -> dict[str, dict[str, Any]]:
        """Sinusoids against a learned row per position, added to 16 rows of embeddings."""
        values = numpy.random.default_rng(0).standard_normal((16, seq_length, embedding_dim))
        x = Tensor(values.astype(numpy.float32))
        fixed = PositionalEncoding(embedding_dim, 2 * seq_length)
        learned = LearnedPositionalEmbedding(2 * seq_length, embedding_dim)
        notes = {
            "sinusoidal": (
                fixed,
                True,
                "any position, but what was not trained on is new to the model",
            ),
            "learned": (learned, False, "none beyond the table"),
        }
        return {
            name: {
                "computation_time_ms": milliseconds(lambda m=module: m(x)),
                "memory_usage_mb": megabytes(module.count_parameters()),
                "parameters": module.count_parameters(), "deterministic": fixed_numbers,
                "extrapolation": note,
            }
            for name, (module, fixed_numbers, note) in notes.items()
        }  # fmt: skip
