"""The course's profilers: its names, its keys, and numbers that are true."""

import math
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, Transformer, profiler
from tinytorch_gpu.config import TransformerConfig
from tinytorch_gpu.core.attention import AttentionProfiler, MultiHeadAttention
from tinytorch_gpu.core.embeddings import Embedding, EmbeddingProfiler
from tinytorch_gpu.core.layers import PositionwiseFeedForward
from tinytorch_gpu.core.tokenization import CharTokenizer, TokenizationProfiler
from tinytorch_gpu.core.transformers import TransformerProfiler
from tinytorch_gpu.profiler import Profiler

BASE = {"vocab_size": 50, "embed_dim": 32, "num_heads": 4, "hidden_dim": 64}
TEXTS = ["Hello world!", "This is a test sentence.", "Tokenization speed matters."]


def positive(values: dict[str, Any], *but: str) -> bool:
    return all(v > 0 for k, v in values.items() if isinstance(v, int | float) and k not in but)


def test_names_have_one_home() -> None:
    assert TransformerProfiler is profiler.TransformerProfiler
    assert AttentionProfiler is profiler.AttentionProfiler
    assert EmbeddingProfiler is profiler.EmbeddingProfiler
    assert TokenizationProfiler is profiler.TokenizationProfiler


def test_depth() -> None:
    found = TransformerProfiler().measure_scaling_with_depth(BASE, [1, 2])
    assert list(found) == [1, 2] and set(found[1]) == {
        "num_layers", "total_parameters", "total_memory_mb", "computation_time_ms", "tokens_per_second",
        "memory_per_layer_mb", "parameters_per_layer",
    }  # fmt: skip
    assert positive(found[1]) and positive(found[2])
    grown = found[2]["total_parameters"] - found[1]["total_parameters"]
    assert grown == found[1]["parameters_per_layer"] == found[2]["parameters_per_layer"]


def test_width_against_depth() -> None:
    shapes = [
        dict(embed_dim=32, num_heads=4, num_layers=2, hidden_dim=64),
        dict(embed_dim=16, num_heads=2, num_layers=8, hidden_dim=32),
    ]
    found = TransformerProfiler().analyze_width_vs_depth_tradeoffs(100_000, shapes)
    assert list(found) == ["Config_1", "Config_2"]
    for name, given in zip(found, shapes, strict=True):
        one = found[name]
        assert one["config"] == given and positive(one)
        assert one["parameter_efficiency"] == abs(one["actual_parameters"] - 100_000) / 100_000


def test_production_sizes() -> None:
    found = TransformerProfiler().simulate_production_scaling(["Small", "XL"])
    small = found["Small"]
    config = TransformerConfig(**small["config"], max_seq_length=1024)
    model = Transformer.from_config(config, device="cpu", init=False)
    assert small["total_parameters"] == model.count_parameters()
    assert 3 < small["training_memory_gb"] / small["inference_memory_gb"] < 8
    assert found["XL"]["training_memory_gb"] > small["training_memory_gb"]
    assert small["inference_gpu_req"] in profiler.DEVICES
    with pytest.raises(ValueError, match="no size 'Huge'"):
        TransformerProfiler().simulate_production_scaling(["Huge"])


def test_tokenizers() -> None:
    tools = TokenizationProfiler()
    found = tools.measure_tokenization_speed(CharTokenizer(), TEXTS, "Character")
    assert found["total_characters"] == found["total_tokens"] == sum(map(len, TEXTS))
    assert (
        found["compression_ratio"] == 1
        and found["avg_sequence_length"] == found["total_tokens"] / 3
    )
    both = tools.compare_tokenizers(TEXTS)
    assert both["BPE"]["total_tokens"] < both["Character"]["total_tokens"]
    short, long = tools.analyze_memory_scaling(CharTokenizer(), [50, 100])
    assert short["num_tokens"] == short["text_length"] == 50
    assert long["total_memory_bytes"] == 2 * short["total_memory_bytes"]


def test_embeddings() -> None:
    tools, table = EmbeddingProfiler(), Embedding(100, 16)
    found = tools.measure_lookup_performance(table, [2, 4], [8])
    assert list(found) == ["batch_2_seq_8", "batch_4_seq_8"] and positive(found["batch_2_seq_8"])
    assert found["batch_4_seq_8"]["output_memory_mb"] == 4 * 8 * 16 * 4 / 2**20
    sizes = tools.analyze_memory_scaling([100, 200], [8])
    assert sizes["vocab_200_dim_8"]["memory_mb"] == 2 * sizes["vocab_100_dim_8"]["memory_mb"]
    kinds = tools.compare_positional_encodings(10, 8)
    assert kinds["sinusoidal"]["parameters"] == 0 and kinds["learned"]["parameters"] == 160


def test_attention() -> None:
    tools = AttentionProfiler()
    found = tools.measure_attention_scaling(MultiHeadAttention(16, 4), [8, 16], embed_dim=16)
    assert positive(found[8])
    ratios = tools.analyze_quadratic_scaling(found)
    assert ratios["base_sequence_length"] == 8 and ratios[16]["memory_ratio"] == 4
    kinds = tools.compare_attention_types(8, 16)
    assert kinds["scaled_dot_product"]["parameters"] == 0
    assert kinds["multi_head"]["parameters"] == 4 * 16 * 16
    saved = tools.simulate_kv_cache_benefits([16, 256], 32, 4)
    assert 12 < saved[16]["estimated_speedup"] < 20 and saved[256]["estimated_speedup"] > 150
    assert 0 < saved[16]["memory_savings_percent"] < saved[256]["memory_savings_percent"] < 100


def test_any_module() -> None:
    tools, part = Profiler(), PositionwiseFeedForward(16, 64)
    assert tools.count_parameters(part) == 2 * 16 * 64 + 16 + 64
    products = 2 * 10 * 2 * 16 * 64
    assert products <= tools.count_flops(part, (2, 5, 16)) < 1.1 * products
    x = Tensor(np.ones((2, 5, 16), np.float32))
    assert tools.measure_latency(part, x, 1, 3) > 0
    model = Transformer(50, 32, 4, 2, 64, 64, device="cpu")
    counted = profiler.train_step(profiler.Setting(model.config), 2, 16).by("direction")["forward"]
    loss = profiler.train_step(profiler.Setting(model.config), 2, 16).by("role")["loss"]
    assert math.isclose(
        tools.count_flops(model, (2, 16)), counted.flops - loss.flops / 2, rel_tol=1e-3
    )


def test_memory_of_any_module() -> None:
    model = Transformer(300, 64, 4, 2, 256, 128, device="cpu")
    found = Profiler().measure_memory(model, (2, 128))
    said = profiler.training_memory(profiler.Setting(model.config), 2, 128)
    assert found["parameter_memory_mb"] == said.weights / 2**20
    assert found["activation_memory_mb"] == pytest.approx(said.activations / 2**20, rel=0.05)
    assert found["peak_memory_mb"] > found["parameter_memory_mb"] + found["activation_memory_mb"]
