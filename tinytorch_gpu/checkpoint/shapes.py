"""The shapes of a model's weights, from its configuration alone."""

import math

from ..config import TransformerConfig

BLOCK = "transformer_blocks.{i}."
_ATTENTION = BLOCK + "attention."


def block_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one block's weights, by name with ``{i}`` for the layer."""
    embed, hidden, head = config.embed_dim, config.hidden_dim, config.head_size
    widths = {
        "q": config.num_heads * head,
        "k": config.kv_heads * head,
        "v": config.kv_heads * head,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("norm1", "norm2"):
        if config.norm != "none":
            shapes[f"{BLOCK}{part}.gamma"] = (embed,)
        if config.norm == "layer":
            shapes[f"{BLOCK}{part}.beta"] = (embed,)
    for which, width in widths.items():
        shapes[f"{_ATTENTION}w_{which}"] = (embed, width)
        if config.qkv_bias:
            shapes[f"{_ATTENTION}b_{which}"] = (width,)
    shapes[_ATTENTION + "w_o"] = (widths["q"], embed)
    if config.out_bias:
        shapes[_ATTENTION + "b_o"] = (embed,)
    if config.qk_norm:
        shapes[_ATTENTION + "q_norm.gamma"] = shapes[_ATTENTION + "k_norm.gamma"] = (head,)
    ffn = BLOCK + "ffn."
    shapes |= {ffn + "w1": (embed, hidden), ffn + "w2": (hidden, embed)}
    if config.gated:
        shapes[ffn + "w_gate"] = (embed, hidden)
    if config.ffn_bias:
        shapes |= {ffn + "b1": (hidden,), ffn + "b2": (embed,)}
    return shapes


def outer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights outside the blocks, by name."""
    vocab, embed = config.vocab_size, config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (vocab, embed)}
    if config.position == "learned":
        shapes["pos_encoding.weight"] = (config.max_seq_length, embed)
    if config.norm != "none":
        shapes["final_norm.gamma"] = (embed,)
    if config.norm == "layer":
        shapes["final_norm.beta"] = (embed,)
    if not config.tie_embeddings:
        shapes["lm_head"] = (embed, vocab)
    if config.head_bias:
        shapes["lm_head_bias"] = (vocab,)
    return shapes


def count_weights(config: TransformerConfig) -> int:
    """Return the number of weights of a model, tied ones once."""
    outer = sum(math.prod(shape) for shape in outer_shapes(config).values())
    block = sum(math.prod(shape) for shape in block_shapes(config).values())
    return outer + config.num_layers * block
