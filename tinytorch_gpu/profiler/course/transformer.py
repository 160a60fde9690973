"""Whole models: depth, width, and what sizes of production need."""

from collections.abc import Iterable, Sequence
from typing import Any

from ...config import TransformerConfig
from ...core.transformers import Transformer
from ..account import prefill
from ..calls import Setting
from ..deployment import USABLE
from ..memory import inference_memory, training_memory
from ..parameters import count_parameters
from ..spec_table import DEVICES
from .common import milliseconds, random_ids


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
            usage, ids = model.get_memory_usage(), random_ids(model.config.vocab_size, 4, 32)
            spent = milliseconds(lambda m=model, i=ids: m(i), model.device)
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
            usage, ids = model.get_memory_usage(), random_ids(model.config.vocab_size, 4, 32)
            actual = usage["total_parameters"]
            setting = Setting(model.config)
            found[f"Config_{i + 1}"] = {
                "config": given, "actual_parameters": actual,
                "computation_time_ms": milliseconds(lambda m=model, i=ids: m(i), model.device),
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
