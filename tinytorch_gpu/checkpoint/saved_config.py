"""``TransformerConfig`` to Hugging Face's ``config.json``."""

from typing import Any

from ..config import RopeScaling, TransformerConfig
from .configs import LLAMA_LIKE, OWN_TYPE, config_from_hf
from .encoder_configs import ACTIVATIONS, FEED_FORWARD
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
    return common | _written(config, kind)


def hf_type(config: TransformerConfig) -> str:
    """Return the Hugging Face model_type that can express ``config`` exactly, or our own."""
    for kind in (*_WRITERS, *LLAMA_LIKE):
        values = _written(config, kind)
        values = {
            "model_type": kind,
            "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.init_std or 0.0,
        } | values
        try:
            if config_from_hf(values) == config:
                return kind
        except ModelFileError:
            continue
    return OWN_TYPE


def _written(config: TransformerConfig, kind: str) -> dict[str, Any]:
    return _WRITERS[kind](config) if kind in _WRITERS else _to_llama_like(config, kind)


def _named(activation: str, known: dict[str, str]) -> str:
    """The first of Hugging Face's names of an activation."""
    return next((theirs for theirs, ours in known.items() if ours == activation), activation)


def _to_bert(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_seq_length,
        "hidden_act": _named(config.activation, ACTIVATIONS),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.token_types,
    }


def _to_t5(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "d_model": config.embed_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_size,
        "d_ff": config.hidden_dim,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.num_layers,
        "n_positions": config.max_seq_length,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": _named(config.activation, FEED_FORWARD),
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "scale_decoder_outputs": config.head_scale != 1.0,
        "decoder_start_token_id": config.start_token,
    }


def _to_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_inner": config.hidden_dim,
        "n_positions": config.max_seq_length,
        "activation_function": _named(config.activation, ACTIVATIONS),
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


_WRITERS = {"gpt2": _to_gpt2, "bert": _to_bert, "t5": _to_t5}
