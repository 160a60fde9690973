"""The shapes of a model's weights, from its configuration alone."""

import math

from ..config import TransformerConfig

BLOCK = "transformer_blocks.{i}."
ENCODER_BLOCK = "encoder.transformer_blocks.{j}."


def block_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one block's weights, by name with ``{i}`` for the layer."""
    embed, hidden = config.embed_dim, config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    norms, attentions = ["norm1", "norm2"], ["attention"]
    if config.encoder_layers:
        norms, attentions = [*norms, "cross_norm"], [*attentions, "cross_attention"]
    for part in norms:
        shapes |= _norm_shapes(config, BLOCK + part)
    for part in attentions:
        shapes |= _attention_shapes(config, f"{BLOCK}{part}.")
    ffn = BLOCK + "ffn."
    shapes |= {ffn + "w1": (embed, hidden), ffn + "w2": (hidden, embed)}
    if config.gated:
        shapes[ffn + "w_gate"] = (embed, hidden)
    if config.ffn_bias:
        shapes |= {ffn + "b1": (hidden,), ffn + "b2": (embed,)}
    return shapes


def _norm_shapes(config: TransformerConfig, name: str) -> dict[str, tuple[int, ...]]:
    vectors = {"layer": ("gamma", "beta"), "rms": ("gamma",), "none": ()}[config.norm]
    return {f"{name}.{vector}": (config.embed_dim,) for vector in vectors}


def _attention_shapes(config: TransformerConfig, start: str) -> dict[str, tuple[int, ...]]:
    embed, head = config.embed_dim, config.head_size
    inside, shared = config.num_heads * head, config.kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {}
    for which, width in (("q", inside), ("k", shared), ("v", shared)):
        shapes[f"{start}w_{which}"] = (embed, width)
        if config.qkv_bias:
            shapes[f"{start}b_{which}"] = (width,)
    shapes[start + "w_o"] = (inside, embed)
    if config.out_bias:
        shapes[start + "b_o"] = (embed,)
    if config.qk_norm:
        shapes[start + "q_norm.gamma"] = shapes[start + "k_norm.gamma"] = (head,)
    return shapes


def layered_shapes(config: TransformerConfig) -> dict[str, tuple[dict[str, tuple[int, ...]], int]]:
    """Of each stack of blocks the mark that stands for a layer in its names, with one block's shapes and the
    number of blocks."""
    found = {"{i}": (block_shapes(config), config.num_layers)}
    if config.encoder_layers:
        own = block_shapes(config.encoder)
        renamed = {name.replace(BLOCK, ENCODER_BLOCK): shape for name, shape in own.items()}
        found["{j}"] = (renamed, config.encoder_layers)
    return found


def _stack_shapes(config: TransformerConfig, start: str = "") -> dict[str, tuple[int, ...]]:
    """Of a stack's weights outside its blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.position == "relative":
        shapes[start + "relative.weight"] = (config.relative_buckets, config.num_heads)
    if config.final_norm:
        shapes |= _norm_shapes(config, start + "final_norm")
    return shapes


def outer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights outside the blocks, by name."""
    vocab, embed = config.vocab_size, config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (vocab, embed)}
    if config.position == "learned":
        shapes["pos_encoding.weight"] = (config.max_seq_length, embed)
    if config.token_types:
        shapes["type_embedding.weight"] = (config.token_types, embed)
    if config.embedding_norm:
        shapes |= _norm_shapes(config, "embedding_norm")
    if config.encoder_layers:
        shapes |= _stack_shapes(config.encoder, "encoder.")
    shapes |= _stack_shapes(config)
    if config.head and not config.tie_embeddings:
        shapes["lm_head"] = (embed, vocab)
    if config.head_bias:
        shapes["lm_head_bias"] = (vocab,)
    return shapes


def count_weights(config: TransformerConfig) -> int:
    """Return the number of weights of a model, tied ones once."""
    outer = sum(math.prod(shape) for shape in outer_shapes(config).values())
    return outer + sum(
        count * sum(math.prod(shape) for shape in block.values())
        for block, count in layered_shapes(config).values()
    )
