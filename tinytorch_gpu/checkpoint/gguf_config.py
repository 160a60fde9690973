"""A GGUF file's metadata to ``TransformerConfig``."""

import math
from collections.abc import Mapping
from typing import Any

import numpy

from ..config import RopeScaling, TransformerConfig
from .configs import MOST_POSITIONS
from .errors import ModelFileError, listed, quoted
from .files import Fields
from .gguf import GGUFHeader, TensorInfo
from .quantization import decoded_blocks, stored_format

# Architecture: the table of names (names.py).
ARCHITECTURES = {
    "gpt2": "gguf-gpt2",
    "llama": "gguf-llama",
    "qwen2": "gguf-qwen",
    "qwen3": "gguf-qwen",
}

# Every key under the architecture's name that is understood; any other would change the model.
_KNOWN = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", "attention.sliding_window", "attention.causal",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "expert_count",
    "expert_used_count", "tensor_data_layout",
}  # fmt: skip


def config_from_gguf(header: GGUFHeader) -> tuple[str, TransformerConfig]:
    """Return (family of names, configuration) of a GGUF file.

    An unsupported architecture or feature, or a value of the wrong type, is a ModelFileError.
    """
    where = str(header.file.path)
    fields = Fields(header.metadata, where)
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ModelFileError(
            f"{where}: architecture {quoted(architecture)} is not one of {supported}"
        )
    if fields.whole("split.count", 1, least=0) > 1:
        raise ModelFileError(f"{where} is one part of several; merge them with llama-gguf-split")
    prefix = architecture + "."
    own = {
        key.removeprefix(prefix): value
        for key, value in header.metadata.items()
        if key.startswith(prefix)
    }
    unknown = [prefix + key for key in own if key not in _KNOWN]
    if unknown:
        raise ModelFileError(f"{where} asks for what is not supported: {listed(unknown)}")
    own["tokens"] = header.metadata.get("tokenizer.ggml.tokens")
    family = ARCHITECTURES[architecture]
    fields = Fields(own, f"{where}: {architecture}")
    try:
        make = _gpt2 if architecture == "gpt2" else _llama_like
        return family, make(fields, header.tensors)
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"{where}: {error}") from None


def _common(fields: Fields, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    fields.require("expert_count", 0, "mixtures of experts are not loaded")
    fields.require("attention.causal", True, "only decoders are loaded")
    fields.require("tensor_data_layout", "reference", "another order of rows")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFileError(f"{fields.where}: tensor 'token_embd.weight' is missing or misshapen")
    vocab = embedding.shape[0]
    tokens = fields.get("tokens", [])
    if not isinstance(tokens, list) or len(tokens) > vocab:
        raise fields.error("tokenizer.ggml.tokens", f"must be a list of at most {vocab} strings")
    return {
        "vocab_size": vocab,
        "embed_dim": fields.whole("embedding_length"),
        "num_layers": fields.whole("block_count"),
        "hidden_dim": fields.whole("feed_forward_length"),
        "num_heads": fields.whole("attention.head_count"),
        "max_seq_length": fields.whole("context_length", most=MOST_POSITIONS),
        "qkv_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        "out_bias": "blk.0.attn_output.bias" in tensors,
        "tie_embeddings": "output.weight" not in tensors,
        "init_std": 0.02,  # what these families start from; matters only to a new model
    }


def _gpt2(fields: Fields, tensors: Mapping[str, TensorInfo]) -> TransformerConfig:
    common = _common(fields, tensors)
    fields.require("attention.head_count_kv", common["num_heads"], "GPT-2 has as many kv heads")
    return TransformerConfig(
        **common,
        norm_eps=fields.number("attention.layer_norm_epsilon"),
        position="learned",
        activation="gelu_tanh",
    )


def _llama_like(fields: Fields, tensors: Mapping[str, TensorInfo]) -> TransformerConfig:
    head_dim = fields.whole("attention.key_length", None)
    fields.require("attention.value_length", head_dim, "keys and values have one width")
    theta = fields.number("rope.freq_base", 10000.0)
    window = fields.whole("attention.sliding_window", 0, least=0)
    config = TransformerConfig(
        **_common(fields, tensors),
        num_kv_heads=fields.whole("attention.head_count_kv", None),
        head_dim=head_dim,
        norm="rms",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        position="rotary",
        rope_theta=theta,
        activation="swiglu",
        ffn_bias=False,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sliding_window=window or None,
    )
    fields.require("rope.dimension_count", config.head_size, "whole heads are rotated")
    if (scaling := _rope_scaling(fields, tensors, config)) is not None:
        config = config.replace(rope_scaling=scaling)
    return config


def _rope_scaling(
    fields: Fields, tensors: Mapping[str, TensorInfo], config: TransformerConfig
) -> RopeScaling | None:
    kind = fields.text("rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return RopeScaling("linear", factor) if factor != 1 else None
    if kind != "none":
        raise fields.error("rope.scaling.type", f"{quoted(kind)} is not supported; linear is")
    stored = tensors.get("rope_freqs.weight")
    return None if stored is None else _llama3(fields, stored, config)


def _llama3(fields: Fields, stored: TensorInfo, config: TransformerConfig) -> RopeScaling | None:
    """Recover llama3 scaling from the divisors of the frequencies, which is all a GGUF keeps."""
    pairs = config.rotary // 2
    if stored.shape != (pairs,):
        raise ModelFileError(
            f"{fields.where}: tensor 'rope_freqs.weight' has shape {stored.shape}, not ({pairs},)"
        )
    form = stored_format(stored.dtype_name, stored.name)
    _, divisors = next(decoded_blocks(stored.raw(), form, stored.shape))
    if not numpy.isfinite(divisors).all() or divisors.min() < 1:
        raise ModelFileError(
            f"{fields.where}: tensor 'rope_freqs.weight' has values below 1 or NaN"
        )
    factor = float(divisors.max())
    if factor == 1:
        return None
    scaling = RopeScaling("llama3", factor)
    expected = llama3_divisors(scaling, config.rope_theta, config.rotary)
    if not numpy.allclose(divisors, expected, rtol=1e-3):
        raise ModelFileError(f"{fields.where}: rotary scaling other than llama3's is not supported")
    return scaling


def llama3_divisors(scaling: RopeScaling, theta: float, rotary_dim: int) -> list[float]:
    """Return what llama3 scaling divides each of the rotary_dim / 2 frequencies by."""
    divisors = []
    for pair in range(rotary_dim // 2):
        turns = scaling.original_max_seq_length / (2 * math.pi * theta ** (2 * pair / rotary_dim))
        span = scaling.high_freq_factor - scaling.low_freq_factor
        smooth = min(max((turns - scaling.low_freq_factor) / span, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return divisors
