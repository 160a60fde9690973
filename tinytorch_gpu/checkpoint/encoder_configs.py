"""``config.json`` of models with an encoder, BERT and T5, to ``TransformerConfig``."""

from collections.abc import Iterable
from typing import Any

from ..config import TransformerConfig
from .errors import quoted
from .files import Fields

MOST_POSITIONS = 1 << 24
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
# T5's name of its feed-forward part: "gated-" multiplies, and then "gelu" is the tanh one.
FEED_FORWARD = ACTIVATIONS | {"gated-gelu": "geglu", "gated-silu": "swiglu"}


def activation_of(
    fields: Fields, name: str, default: str, known: dict[str, str] = ACTIVATIONS
) -> Any:
    """Our name of the activation that field ``name`` asks for; one there is not is a ModelFileError."""
    found = fields.text(name, default)
    if found not in known:
        raise fields.error(name, f"is {quoted(found)}, not one of {', '.join(known)}")
    return known[found]


def init_std(fields: Fields) -> float | None:
    """The deviation of new weights, None for 0; one below 0 is a ModelFileError."""
    std = fields.number("initializer_range", 0.02)
    if std < 0:
        raise fields.error("initializer_range", f"must not be below 0, not {std}")
    return std or None


def bert(fields: Fields, kind: str) -> TransformerConfig:
    """An encoder alone. A field of a kind of BERT that is not loaded is a ModelFileError."""
    fields.require("position_embedding_type", "absolute", "positions are added to the embeddings")
    fields.require("is_decoder", False, "BERT is loaded as the encoder that it is")
    fields.flag("tie_word_embeddings", True)  # of a head that is no part of the encoder
    return TransformerConfig(
        vocab_size=fields.whole("vocab_size", 30522),
        embed_dim=fields.whole("hidden_size", 768),
        num_heads=fields.whole("num_attention_heads", 12),
        num_layers=fields.whole("num_hidden_layers", 12),
        hidden_dim=fields.whole("intermediate_size", 3072),
        max_seq_length=fields.whole("max_position_embeddings", 512, most=MOST_POSITIONS),
        dropout=fields.number("hidden_dropout_prob", 0.1),
        pre_norm=False,
        causal=False,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        position="learned",
        activation=activation_of(fields, "hidden_act", "gelu"),
        qkv_bias=True,
        out_bias=True,
        embedding_norm=True,
        final_norm=False,
        token_types=fields.whole("type_vocab_size", 2),
        head=False,
        init_std=init_std(fields),
    )


def t5(fields: Fields, kind: str) -> TransformerConfig:
    """An encoder-decoder. Version 1.1 (FLAN-T5) has a head of its own and does not scale the states
    before it; files say that by ``tie_word_embeddings``, newer ones by ``scale_decoder_outputs``.
    A field of a kind of T5 that is not loaded is a ModelFileError."""
    embed, layers = fields.whole("d_model", 512), fields.whole("num_layers", 6)
    fields.require("is_decoder", False, "both halves are loaded")
    fields.number(
        "initializer_range", 0.0
    )  # T5 has its own rule; we write the key for every family
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied)
    return TransformerConfig(
        vocab_size=fields.whole("vocab_size", 32128),
        embed_dim=embed,
        num_heads=fields.whole("num_heads", 8),
        num_layers=fields.whole("num_decoder_layers", layers),
        hidden_dim=fields.whole("d_ff", 2048),
        max_seq_length=fields.whole("n_positions", 512, most=MOST_POSITIONS),
        dropout=fields.number("dropout_rate", 0.1),
        head_dim=fields.whole("d_kv", 64),
        norm="rms",
        norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        position="relative",
        activation=activation_of(fields, "feed_forward_proj", "relu", FEED_FORWARD),
        ffn_bias=False,
        tie_embeddings=tied and scaled,
        encoder_layers=layers,
        head_scale=embed**-0.5 if scaled else 1.0,
        attention_scale=1.0,
        relative_buckets=fields.whole("relative_attention_num_buckets", 32),
        relative_distance=fields.whole("relative_attention_max_distance", 128),
        start_token=fields.whole("decoder_start_token_id", 0, least=0),
    )


def with_head_of_file(config: TransformerConfig, names: Iterable[str]) -> TransformerConfig:
    """A T5's configuration with the head that its file has: newer files call every head tied."""
    return config.replace(tie_embeddings="lm_head.weight" not in names)
