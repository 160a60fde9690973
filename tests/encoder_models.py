"""Tiny encoders and encoder-decoders for tests."""

from typing import Any

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.config import FAMILIES

SIZES = dict(
    vocab_size=30, embed_dim=16, num_heads=4, num_layers=2, hidden_dim=24, max_seq_length=24
)
KINDS: dict[str, dict[str, Any]] = {
    "bert": FAMILIES["bert"],
    "t5": {**FAMILIES["t5"], "encoder_layers": 2, "activation": "relu", "tie_embeddings": True,
           "head_scale": 0.25, "init_std": 0.3},
    "flan-t5": {**FAMILIES["t5"], "encoder_layers": 1, "head_dim": 6, "relative_buckets": 8,
                "relative_distance": 12},
    "vaswani": {"encoder_layers": 2, "pre_norm": False, "qkv_bias": True, "out_bias": True,
                "final_norm": False, "embedding_norm": True},
    "rotary, grouped, qk norm": {**FAMILIES["llama"], "encoder_layers": 1, "num_kv_heads": 2,
                                 "qk_norm": True},
    "relative decoder": {"position": "relative", "relative_buckets": 8, "relative_distance": 6},
}  # fmt: skip


def config(kind: str, **changes: Any) -> TransformerConfig:
    return TransformerConfig(**{**SIZES, **KINDS[kind], **changes})


def model(kind: str, device: str = "cpu", dtype: str = "float32", **changes: Any) -> Transformer:
    return Transformer.from_config(config(kind, **changes), device=device, dtype=dtype, seed=0)
