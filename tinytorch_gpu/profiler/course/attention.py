"""Attention: how it grows with the length, and what a cache saves."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy

from ...config import TransformerConfig
from ...core.attention import MultiHeadAttention, ScaledDotProductAttention
from ...core.module import Module, megabytes
from ...core.tensor import Tensor, no_grad
from ..account import decode, prefill
from ..calls import Setting
from ..recorded import forward_cost
from .common import MB, milliseconds


class AttentionProfiler:
    """How attention's time and memory grow with the length."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def measure_attention_scaling(
        self,
        attention_layer: Any,
        seq_lengths: Iterable[int],
        embed_dim: int = 256,
        batch_size: int = 1,
    ) -> dict[int, dict[str, Any]]:
        """Self-attention at each length. The matrix of weights is what an attention that builds it would need:
        the library's makes it a block at a time."""
        found, random = {}, numpy.random.default_rng(0)
        for length in seq_lengths:
            x = Tensor(
                random.standard_normal((batch_size, length, embed_dim)).astype(numpy.float32)
            )
            run = functools.partial(attention_layer, x, x, x)
            spent, flops = milliseconds(run), forward_cost(run).flops
            with no_grad():
                out = attention_layer(x, x, x).data.nbytes
            given, matrix = 3 * x.data.nbytes, batch_size * length * length * 4
            found[length] = {
                "seq_length": length, "computation_time_ms": spent, "input_memory_mb": given / MB,
                "output_memory_mb": out / MB, "attention_matrix_memory_mb": matrix / MB,
                "total_memory_mb": (given + out + matrix) / MB,
                "operations_per_second": flops / spent * 1e3,
                "time_per_token_us": spent * 1e3 / (batch_size * length),
            }  # fmt: skip
        return found

    def analyze_quadratic_scaling(
        self, scaling_results: dict[int, dict[str, Any]]
    ) -> dict[Any, Any]:
        """Ratios of ``measure_attention_scaling``'s results to those of the shortest length."""
        lengths = sorted(scaling_results)
        if len(lengths) < 2:
            return {}
        base = scaling_results[lengths[0]]
        found: dict[Any, Any] = {"base_sequence_length": lengths[0]}
        for length in lengths[1:]:
            one, ratio = scaling_results[length], length / lengths[0]
            spent = one["computation_time_ms"] / max(base["computation_time_ms"], 1e-9)
            found[length] = {
                "length_ratio": ratio, "time_ratio": spent, "theoretical_ratio": ratio**2,
                "memory_ratio": one["attention_matrix_memory_mb"] / base["attention_matrix_memory_mb"],
                "time_efficiency": ratio**2 / spent,
            }  # fmt: skip
        return found

    def compare_attention_types(
        self, seq_length: int = 128, embed_dim: int = 256
    ) -> dict[str, dict[str, Any]]:
        """One head without projections against eight with them, over 8 rows."""
        values = numpy.random.default_rng(0).standard_normal((8, seq_length, embed_dim))
        x = Tensor(values.astype(numpy.float32))
        modules: dict[str, tuple[Module, str]] = {
            "scaled_dot_product": (ScaledDotProductAttention(), "one head, no projections"),
            "multi_head": (MultiHeadAttention(embed_dim, 8), "8 heads, with projections"),
        }
        found = {}
        for name, (module, note) in modules.items():
            count = module.count_parameters()
            with no_grad():
                out = module(x, x, x).data.nbytes
            found[name] = {
                "computation_time_ms": milliseconds(lambda m=module: m(x, x, x)), "parameters": count,
                "memory_mb": out / MB + megabytes(count), "description": note,
            }  # fmt: skip
        return found

    def simulate_kv_cache_benefits(
        self, seq_lengths: Iterable[int], embed_dim: int = 256, num_heads: int = 8
    ) -> dict[int, dict[str, Any]]:
        """A token at the end of each length, with a cache and with the whole text run again: bytes of keys,
        values and weights, and the ratio of the arithmetic, in one layer."""
        sizes = (1, embed_dim, num_heads, 1, 4 * embed_dim)
        found = {}
        for length in seq_lengths:
            setting = Setting(TransformerConfig(*sizes, length + 1, position="none"))
            again = prefill(setting, 1, length).cost.flops
            step = decode(setting, 1, max(length - 1, 0), greedy=True).cost.flops
            keys = 2 * length * embed_dim * 4
            without, kept = keys + num_heads * length * length * 4, keys + num_heads * length * 4
            found[length] = {
                "no_cache_memory_mb": without / MB, "cache_memory_mb": kept / MB,
                "memory_savings_percent": 100 * (without - kept) / without,
                "estimated_speedup": again / step,
            }  # fmt: skip
        return found
