"""Hugging Face's ``config.json`` to ``TransformerConfig`` (``saved_config`` is the way back).

What a configuration asks for and this library does not do is an error, never ignored: the text
would be wrong without a word. Keys that nobody here knows are named in a warning.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..config import RopeScaling, TransformerConfig
from .encoder_configs import MOST_POSITIONS, activation_of, bert, init_std, t5
from .errors import ModelFileError, listed, quoted
from .files import Fields

log = logging.getLogger(__name__)

OWN_TYPE = "tinytorch_gpu"  # model_type of a model that no Hugging Face family can express
MOST_TABLE = 1 << 26  # elements of a table that is computed, so that no file vouches for its size

# What Hugging Face's classes take where a config.json is silent.
LLAMA_LIKE: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
FAMILY_OF = {"gpt2": "gpt2", "bert": "bert", "t5": "t5", OWN_TYPE: "course"} | dict.fromkeys(
    LLAMA_LIKE, "llama"
)

# Keys without effect on what the model computes, or read outside this module.
_WITHOUT_EFFECT = {
    "model_type", "architectures", "torch_dtype", "dtype", "transformers_version",
    "_name_or_path", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    "attention_dropout", "pretraining_tp", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "n_ctx", "id2label",
    "summary_first_dropout", "reorder_and_upcast_attn", "embd_pdrop", "attn_pdrop",
    "output_attentions", "output_hidden_states", "return_dict", "label2id", "problem_type",
    "task_specific_params", "is_llama_config", "chunk_size_feed_forward",
    "_attn_implementation", "transformers.js_config", "unsloth_version", "max_window_layers",
    "tokenizer_class", "finetuning_task", "num_labels", "attention_probs_dropout_prob",
    "classifier_dropout", "classifier_dropout_prob", "gradient_checkpointing", "initializer_factor", "output_past", "prefix",
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "dense_act_fn", "is_gated_act", "min_length", "max_length",
    "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size",
}  # fmt: skip


def family_of(kind: str, config: TransformerConfig) -> str:
    """The table of names (``families``) of a model_type's files."""
    family = FAMILY_OF[kind]
    return "t5-gated" if family == "t5" and config.gated else family


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> TransformerConfig:
    """Return the configuration that ``config.json``'s ``values`` describe.

    An unsupported architecture or feature, or a value of the wrong type, is a ModelFileError.
    """
    seen = _Seen(values)
    fields = Fields(seen, where)
    kind = fields.text("model_type")
    if kind not in FAMILY_OF:
        supported = ", ".join(sorted(FAMILY_OF))
        raise ModelFileError(f"{where}: model_type {quoted(kind)} is not one of {supported}")
    fields.require("quantization_config", None, "weights must be stored as F32, F16 or BF16")
    both = "of models with an encoder and a decoder only T5 is loaded"
    fields.require("is_encoder_decoder", kind == "t5", both)
    fields.require("add_cross_attention", False, both)
    try:
        if kind == OWN_TYPE:
            own = {k: v for k, v in values.items() if k not in ("model_type", "torch_dtype")}
            config = _checked_own(own, where)
        else:
            config = _READERS.get(kind, _llama_like)(fields, kind)
            unknown = [key for key in values if key not in seen.asked | _WITHOUT_EFFECT]
            if unknown:
                log.warning("%s: unknown keys are ignored: %s", where, listed(unknown))
    except ModelFileError:
        raise
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{where}: {error}") from None
    return config


class _Seen(dict[str, Any]):
    """A mapping that remembers which keys were asked for."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _checked_own(values: dict[str, Any], where: str) -> TransformerConfig:
    """Build our own configuration; its numbers are checked like anybody's."""
    fields = Fields(values, where)
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool):
            fields.whole(name, least=0)
        elif isinstance(value, float):
            fields.number(name)
    for name in ("norm", "position", "activation"):
        fields.text(name, None)
    positions = fields.whole("max_seq_length", least=1, most=MOST_POSITIONS)
    computed = fields.text("position", "sinusoidal") == "sinusoidal"
    if computed and positions * fields.whole("embed_dim") > MOST_TABLE:
        raise fields.error("max_seq_length", f"{positions} needs too large a table of sinusoids")
    scaling = fields.table("rope_scaling")
    for name in scaling.values:
        if name != "kind":
            scaling.number(name)
    return TransformerConfig.from_dict(values)


def _gpt2(fields: Fields, kind: str) -> TransformerConfig:
    fields.require("scale_attn_weights", True, "attention is always scaled")
    fields.require("scale_attn_by_inverse_layer_idx", False, "attention is scaled by 1/sqrt(D)")
    embed = fields.whole("n_embd", 768)
    return TransformerConfig(
        vocab_size=fields.whole("vocab_size", 50257),
        embed_dim=embed,
        num_heads=fields.whole("n_head", 12),
        num_layers=fields.whole("n_layer", 12),
        hidden_dim=fields.whole("n_inner", 4 * embed),
        max_seq_length=fields.whole("n_positions", 1024, most=MOST_POSITIONS),
        dropout=fields.number("resid_pdrop", 0.1),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        position="learned",
        activation=activation_of(fields, "activation_function", "gelu_new"),
        qkv_bias=True,
        out_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        init_std=init_std(fields),
    )


def _llama_like(fields: Fields, kind: str) -> TransformerConfig:
    fields.require("hidden_act", "silu", "the feed-forward part is SwiGLU")
    fields.require("mlp_bias", False, "the feed-forward part has no biases")
    fields.require("rope_interleaved", False, "rotary pairs are the halves of a head")
    defaults = LLAMA_LIKE[kind]
    embed, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    head_dim = fields.whole("head_dim", defaults.get("head_dim"))
    bias = False if kind in ("mistral", "qwen2") else fields.flag("attention_bias", False)
    theta, scaling = _rope(fields)
    return TransformerConfig(
        vocab_size=fields.whole("vocab_size"),
        embed_dim=embed,
        num_heads=heads,
        num_layers=fields.whole("num_hidden_layers"),
        hidden_dim=fields.whole("intermediate_size"),
        max_seq_length=fields.whole(
            "max_position_embeddings", defaults["max_position_embeddings"], most=MOST_POSITIONS
        ),
        dropout=fields.number("dropout", 0.0),
        num_kv_heads=fields.whole("num_key_value_heads", defaults.get("num_key_value_heads")),
        head_dim=head_dim,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        position="rotary",
        rope_theta=theta,
        rope_scaling=scaling,
        activation="swiglu",
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        ffn_bias=False,
        qk_norm=kind == "qwen3",
        sliding_window=_sliding_window(fields, kind),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        init_std=init_std(fields),
    )


def _sliding_window(fields: Fields, kind: str) -> int | None:
    """Return the window if every layer has it; some layers only is an error."""
    layers, kinds = fields.whole("num_hidden_layers"), fields.get("layer_types", [])
    if not isinstance(kinds, list):
        raise fields.error("layer_types", "must be a list")
    if kind == "mistral":
        # An absent key means Hugging Face's default, null means none.
        absent = 4096 if "sliding_window" not in fields.values else None
        return fields.whole("sliding_window", absent)
    if kind == "llama":
        fields.require("sliding_window", None, "this architecture has none")
        return None
    window = fields.whole("sliding_window", 4096, least=0)
    if not fields.flag("use_sliding_window", False):
        return None
    full_layers = min(fields.whole("max_window_layers", 28, least=0), layers)
    if kinds:
        full_layers = sum(each != "sliding_attention" for each in kinds)
        layers = len(kinds)
    if full_layers not in (0, layers):
        raise fields.error("use_sliding_window", "for some layers only is not supported")
    return window if full_layers == 0 else None


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Return (theta, scaling) from the keys of transformers 4 or 5."""
    newer, older = fields.table("rope_parameters"), fields.table("rope_scaling")
    rope = older if older.values else newer
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1:
        raise fields.error("partial_rotary_factor", f"{partial} is not supported here; only 1 is")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if not 0 < low < high:
            raise rope.error("high_freq_factor", f"({high}) must be above low_freq_factor ({low})")
        length = rope.whole("original_max_position_embeddings")
        return theta, RopeScaling("llama3", rope.number("factor"), low, high, length)
    raise fields.error(
        "rope_scaling", f"of type {quoted(kind)} is not supported; linear and llama3 are"
    )


_READERS = {"gpt2": _gpt2, "bert": bert, "t5": t5}
