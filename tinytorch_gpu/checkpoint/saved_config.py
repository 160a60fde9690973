"""``TransformerConfig`` to Hugging Face's ``config.json``."""

from typing import Any

from ..config import RopeScaling, TransformerConfig
from .configs import GPT2_ACTIVATIONS, LLAMA_LIKE, OWN_TYPE, config_from_hf
from .errors import ModelFileError


def hf_config(config: TransformerConfig, dtype: str) -> dict[str, Any]:
    """Return ``config.json`` for ``config``: its model_type is a Hugging Face one where one fits.

    Otherwise the model_type is this library's own, which only this library loads.
    """
    kind = hf_type(config)
    common: dict[str, Any] = {"model_type": kind, "torch_dtype": dtype}
    if kind == OWN_TYPE:
        return common | config.to_dict()
    common |= {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std or 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return common | (_to_gpt2(config) if kind == "gpt2" else _to_llama_like(config, kind))


def hf_type(config: TransformerConfig) -> str:
    """Return the Hugging Face model_type that can express ``config`` exactly, or our own."""
    for kind, written in (("gpt2", _to_gpt2), *((k, None) for k in LLAMA_LIKE)):
        values = written(config) if written else _to_llama_like(config, kind)
        values |= {
            "model_type": kind,
            "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.init_std or 0.0,
        }
        try:
            if config_from_hf(values) == config:
                return kind
        except ModelFileError:
            continue
    return OWN_TYPE


def _to_gpt2(config: TransformerConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_inner": config.hidden_dim,
        "n_positions": config.max_seq_length,
        "activation_function": names.get(config.activation, config.activation),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
    }


def _to_llama_like(config: TransformerConfig, kind: str) -> dict[str, Any]:
    title = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    values: dict[str, Any] = {
        "architectures": [title + "ForCausalLM"],
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.hidden_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _to_rope_scaling(config.rope_scaling),
        "dropout": config.dropout,  # not one of Hugging Face's: kept for training on
    }
    if kind in ("llama", "qwen3"):
        values["attention_bias"] = config.out_bias
    if kind == "mistral":
        values["sliding_window"] = config.sliding_window
    if kind.startswith("qwen"):
        values["use_sliding_window"] = config.sliding_window is not None
        values["sliding_window"] = config.sliding_window
        values["max_window_layers"] = 0 if config.sliding_window else config.num_layers
    return values


def _to_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        values |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_length,
        }
    return values
