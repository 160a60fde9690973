"""The course's profilers by its names: thin calls of the accounting, and real measurements.

Their keys are the course's. Sizes are in MB of 2**20 bytes, times medians in milliseconds.
"""

import functools
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import numpy

from ..config import TransformerConfig
from ..core.attention import MultiHeadAttention, ScaledDotProductAttention
from ..core.embeddings import Embedding, LearnedPositionalEmbedding, PositionalEncoding
from ..core.module import Module, megabytes
from ..core.tensor import Tensor, no_grad
from ..core.transformers import Transformer
from .account import decode, prefill
from .calls import Setting
from .clock import seconds_of
from .deployment import USABLE
from .memory import inference_memory, training_memory
from .parameters import count_parameters
from .recorded import forward_cost
from .spec_table import DEVICES
from .traced import traced

MB = 2**20


def _ids(vocab_size: int, batch: int, length: int) -> Any:
    return numpy.random.default_rng(0).integers(0, vocab_size, (batch, length))


def _milliseconds(run: Any, place: Any = "cpu") -> float:
    with no_grad():
        return 1e3 * seconds_of(run, place)


class TransformerProfiler:
    """How a transformer's memory and time grow with its sizes."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def measure_scaling_with_depth(
        self, base_config: dict[str, Any], layer_counts: Iterable[int]
    ) -> dict[int, dict[str, Any]]:
        """Models of ``base_config`` (the constructor's arguments) at each depth: sizes, and the time of a
        forward pass over 4 rows of 32 tokens."""
        found = {}
        for count in layer_counts:
            model = Transformer(**{"max_seq_length": 128, **base_config, "num_layers": count})
            usage, ids = model.get_memory_usage(), _ids(model.config.vocab_size, 4, 32)
            spent = _milliseconds(lambda m=model, i=ids: m(i), model.device)
            block = usage["transformer_blocks_memory_mb"]
            inside = sum(b.count_parameters() for b in model.transformer_blocks)
            found[count] = {
                "num_layers": count, "total_parameters": usage["total_parameters"],
                "total_memory_mb": usage["total_memory_mb"], "computation_time_ms": spent,
                "tokens_per_second": ids.size / spent * 1e3,
                "memory_per_layer_mb": block / count if count else 0,
                "parameters_per_layer": inside // count if count else 0,
            }  # fmt: skip
        self.results["depth"] = found
        return found

    def analyze_width_vs_depth_tradeoffs(
        self, base_params: int, configurations: Sequence[dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Models that spend about ``base_params`` parameters in different ways: ``Config_1`` and so on, with
        what they have, their time, and how far they are from the budget."""
        found = {}
        for i, given in enumerate(configurations):
            model = Transformer(**{"vocab_size": 1000, "max_seq_length": 128, **given})
            usage, ids = model.get_memory_usage(), _ids(model.config.vocab_size, 4, 32)
            actual = usage["total_parameters"]
            setting = Setting(model.config)
            found[f"Config_{i + 1}"] = {
                "config": given, "actual_parameters": actual,
                "computation_time_ms": _milliseconds(lambda m=model, i=ids: m(i), model.device),
                "memory_mb": usage["total_memory_mb"],
                "parameter_efficiency": abs(actual - base_params) / base_params,
                "flops_per_token": prefill(setting, 4, 32).cost.flops / 128,
            }  # fmt: skip
        self.results["width_vs_depth"] = found
        return found

    def simulate_production_scaling(self, model_sizes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Small, Medium, Large and XL: parameters, the memory of training (a row of 512 tokens, AdamW) and of
        generating, in GB of 2**30 bytes, and the smallest devices that hold them."""
        found = {}
        for name in model_sizes:
            if name not in SIZES:
                raise ValueError(f"no size {name!r}; there are {', '.join(SIZES)}")
            setting = Setting(TransformerConfig(**SIZES[name], max_seq_length=1024), where="cuda")
            train = training_memory(setting, 1, 512).peak
            infer = inference_memory(setting, 1, 1024).total
            found[name] = {
                "config": dict(SIZES[name]), "total_parameters": count_parameters(setting),
                "training_memory_gb": train / 2**30, "inference_memory_gb": infer / 2**30,
                "training_gpu_req": smallest_gpu(train), "inference_gpu_req": smallest_gpu(infer),
            }  # fmt: skip
        self.results["production"] = found
        return found


SIZES: dict[str, dict[str, Any]] = {
    "Small": dict(vocab_size=50000, embed_dim=512, num_heads=8, num_layers=6, hidden_dim=2048),
    "Medium": dict(vocab_size=50000, embed_dim=768, num_heads=12, num_layers=12, hidden_dim=3072),
    "Large": dict(vocab_size=50000, embed_dim=1024, num_heads=16, num_layers=24, hidden_dim=4096),
    "XL": dict(vocab_size=50000, embed_dim=1280, num_heads=20, num_layers=36, hidden_dim=5120),
}


def smallest_gpu(needed: int) -> str:
    """The GPU of the table with the least memory that holds ``needed`` bytes."""
    fitting = [d for d in DEVICES.values() if d.kind == "gpu" and d.memory * USABLE >= needed]
    return min(fitting, key=lambda d: (d.memory, d.bandwidth)).name if fitting else "several GPUs"


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
        from ..tokenizers import BPETokenizer, CharTokenizer

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
            spent = _milliseconds(lambda t=text: tokenizer.encode(t, add_special_tokens=False))
            count = len(tokenizer.encode(text, add_special_tokens=False))
            text_bytes, token_bytes = len(text.encode()), 8 * count
            found.append({
                "text_length": length, "num_tokens": count, "time_ms": spent,
                "memory_chars_bytes": text_bytes, "memory_tokens_bytes": token_bytes,
                "total_memory_bytes": text_bytes + token_bytes,
            })  # fmt: skip
        return found


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
                ids = _ids(embedding_layer.vocab_size, batch, length)
                spent = _milliseconds(lambda i=ids: embedding_layer(i))
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
                usage, ids = table.get_memory_usage(), _ids(vocab, 32, 64)
                found[f"vocab_{vocab}_dim_{dim}"] = {
                    "vocab_size": vocab, "embedding_dim": dim,
                    "total_parameters": usage["total_parameters"], "memory_mb": usage["total_memory_mb"],
                    "lookup_time_ms": _milliseconds(lambda t=table, i=ids: t(i)),
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
                "computation_time_ms": _milliseconds(lambda m=module: m(x)),
                "memory_usage_mb": megabytes(module.count_parameters()),
                "parameters": module.count_parameters(), "deterministic": fixed_numbers,
                "extrapolation": note,
            }
            for name, (module, fixed_numbers, note) in notes.items()
        }  # fmt: skip


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
            spent, flops = _milliseconds(run), forward_cost(run).flops
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
                "computation_time_ms": _milliseconds(lambda m=module: m(x, x, x)), "parameters": count,
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


class Profiler:
    """Any module: its parameters, the arithmetic of a forward pass, and its memory and time, measured."""

    def count_parameters(self, model: Module) -> int:
        """Trained values, shared ones once."""
        return model.count_parameters()

    def count_flops(self, model: Module, input_shape: tuple[int, ...]) -> int:
        """Operations of a forward pass over an input of ``input_shape``: ids for a model or an embedding,
        else numbers."""
        x = self._input(model, input_shape)
        return round(forward_cost(lambda: model(x)).flops)

    def measure_memory(self, model: Module, input_shape: tuple[int, ...]) -> dict[str, float]:
        """``parameter_memory_mb``, ``activation_memory_mb`` (what a forward keeps for its backward),
        ``peak_memory_mb`` (both and what is needed for a moment), and the share of it that is kept."""
        x = self._input(model, input_shape)
        stored = sum(int(p.data.nbytes) for p in model.parameters())
        model(x)  # tables are made once
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start(1)
        try:
            with traced() as before:
                pass
            with traced() as found:
                kept = model(x)
            del kept
        finally:
            if not tracing:
                tracemalloc.stop()
        live, peak = found.live - before.live, found.peak - before.live
        return {
            "parameter_memory_mb": stored / MB, "activation_memory_mb": live / MB,
            "peak_memory_mb": (stored + peak) / MB, "memory_efficiency": (stored + live) / (stored + peak),
        }  # fmt: skip

    def measure_latency(
        self, model: Module, input_tensor: Any, warmup: int = 10, iterations: int = 100
    ) -> float:
        """The median milliseconds of ``iterations`` forward passes after ``warmup`` others."""
        place = model.parameters()[0].device if model.parameters() else "cpu"
        with no_grad():
            return 1e3 * seconds_of(lambda: model(input_tensor), place, warmup, iterations)

    @staticmethod
    def _input(model: Module, shape: tuple[int, ...]) -> Any:
        vocab = getattr(model, "vocab_size", None)
        random = numpy.random.default_rng(0)
        if isinstance(vocab, int):
            return random.integers(0, vocab, shape)
        place = model.parameters()[0].device if model.parameters() else None
        return Tensor(random.standard_normal(shape).astype(numpy.float32), device=place)
