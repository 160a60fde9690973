"""What each family of files calls the weights of a model: one table per family, read both ways.

A row of a table says that the file's ``source`` holds the model's ``targets`` (several where the
file fuses them), and how:

- ``SAME``: as the model has it, targets side by side along the last axis;
- ``TRANSPOSED``: as (out, in) rows, targets one below the other;
- ``INTERLEAVED``: like TRANSPOSED, each head's rows in the order of interleaved rotary pairs
  (0, D/2, 1, D/2+1, ...), as llama.cpp keeps the ``llama`` architecture's queries and keys.

Model names are those of ``Transformer.state_dict()``; ``{i}`` stands for the layer, ``{j}`` for that of an
encoder that a decoder reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .shapes import BLOCK, ENCODER_BLOCK

SAME, TRANSPOSED, INTERLEAVED = "same", "transposed", "interleaved"

_ATTENTION = BLOCK + "attention."
_QKV = tuple(_ATTENTION + "w_" + which for which in "qkv")
_QKV_BIAS = tuple(_ATTENTION + "b_" + which for which in "qkv")

Row = tuple[str, str | tuple[str, ...], str]


def _gpt2(names: Mapping[str, str], projection: str, output: str) -> tuple[Row, ...]:
    """Return GPT-2's table: fused and biased; ``names`` are the file's for the model's parts."""
    rows: list[Row] = [
        (names["tokens"] + ".weight", "token_embedding.weight", SAME),
        (names["positions"] + ".weight", "pos_encoding.weight", SAME),
        (output, "lm_head", TRANSPOSED),
    ]
    for part in ("norm1", "norm2", "final_norm"):
        target = part if part == "final_norm" else BLOCK + part
        rows += [
            (names[part] + ".weight", target + ".gamma", SAME),
            (names[part] + ".bias", target + ".beta", SAME),
        ]
    weights: list[tuple[str, str | tuple[str, ...], str | tuple[str, ...]]] = [
        ("qkv", _QKV, _QKV_BIAS),
        ("out", _ATTENTION + "w_o", _ATTENTION + "b_o"),
        ("up", BLOCK + "ffn.w1", BLOCK + "ffn.b1"),
        ("down", BLOCK + "ffn.w2", BLOCK + "ffn.b2"),
    ]
    for part, weight, bias in weights:
        rows += [(names[part] + ".weight", weight, projection), (names[part] + ".bias", bias, SAME)]
    return tuple(rows)


def _llama(names: Mapping[str, str], query_key: str) -> tuple[Row, ...]:
    """Return a LLaMA-like table (also Mistral's and Qwen's)."""
    rows: list[Row] = [
        (names["tokens"] + ".weight", "token_embedding.weight", SAME),
        (names["head"] + ".weight", "lm_head", TRANSPOSED),
        (names["final_norm"] + ".weight", "final_norm.gamma", SAME),
        (names["norm1"] + ".weight", BLOCK + "norm1.gamma", SAME),
        (names["norm2"] + ".weight", BLOCK + "norm2.gamma", SAME),
        (names["q_norm"] + ".weight", _ATTENTION + "q_norm.gamma", SAME),
        (names["k_norm"] + ".weight", _ATTENTION + "k_norm.gamma", SAME),
        (names["gate"] + ".weight", BLOCK + "ffn.w_gate", TRANSPOSED),
        (names["up"] + ".weight", BLOCK + "ffn.w1", TRANSPOSED),
        (names["down"] + ".weight", BLOCK + "ffn.w2", TRANSPOSED),
    ]
    for which in "qkvo":
        rotated = which in "qk"
        weights = query_key if rotated else TRANSPOSED
        biases = INTERLEAVED if rotated and query_key == INTERLEAVED else SAME
        rows += [
            (names[which] + ".weight", _ATTENTION + "w_" + which, weights),
            (names[which] + ".bias", _ATTENTION + "b_" + which, biases),
        ]
    return tuple(rows)


_GPT2_HF = {
    "tokens": "wte", "positions": "wpe", "norm1": "h.{i}.ln_1", "norm2": "h.{i}.ln_2",
    "final_norm": "ln_f", "qkv": "h.{i}.attn.c_attn", "out": "h.{i}.attn.c_proj",
    "up": "h.{i}.mlp.c_fc", "down": "h.{i}.mlp.c_proj",
}  # fmt: skip
_LLAMA_HF = {
    "tokens": "embed_tokens", "head": "lm_head", "final_norm": "norm",
    "norm1": "layers.{i}.input_layernorm", "norm2": "layers.{i}.post_attention_layernorm",
    "q": "layers.{i}.self_attn.q_proj", "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj", "o": "layers.{i}.self_attn.o_proj",
    "q_norm": "layers.{i}.self_attn.q_norm", "k_norm": "layers.{i}.self_attn.k_norm",
    "gate": "layers.{i}.mlp.gate_proj", "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
}  # fmt: skip
_GGUF = {
    "tokens": "token_embd", "positions": "position_embd", "head": "output",
    "final_norm": "output_norm", "norm1": "blk.{i}.attn_norm", "norm2": "blk.{i}.ffn_norm",
    "qkv": "blk.{i}.attn_qkv", "q": "blk.{i}.attn_q", "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v", "o": "blk.{i}.attn_output", "out": "blk.{i}.attn_output",
    "q_norm": "blk.{i}.attn_q_norm", "k_norm": "blk.{i}.attn_k_norm",
    "gate": "blk.{i}.ffn_gate", "up": "blk.{i}.ffn_up", "down": "blk.{i}.ffn_down",
}  # fmt: skip


def _bert() -> tuple[Row, ...]:
    """BERT's table: norms after each part, everything biased."""
    layer = "encoder.layer.{i}."
    rows: list[Row] = [
        ("embeddings.word_embeddings.weight", "token_embedding.weight", SAME),
        ("embeddings.position_embeddings.weight", "pos_encoding.weight", SAME),
        ("embeddings.token_type_embeddings.weight", "type_embedding.weight", SAME),
    ]
    norms = {
        "embeddings.LayerNorm": "embedding_norm",
        layer + "attention.output.LayerNorm": BLOCK + "norm1",
        layer + "output.LayerNorm": BLOCK + "norm2",
    }
    for source, target in norms.items():
        rows += [
            (source + ".weight", target + ".gamma", SAME),
            (source + ".bias", target + ".beta", SAME),
        ]
    maps = {
        "attention.self.query": "attention.{}_q", "attention.self.key": "attention.{}_k",
        "attention.self.value": "attention.{}_v", "attention.output.dense": "attention.{}_o",
        "intermediate.dense": "ffn.{}1", "output.dense": "ffn.{}2",
    }  # fmt: skip
    for source, target in maps.items():
        rows += [
            (layer + source + ".weight", BLOCK + target.replace("{}", "w"), TRANSPOSED),
            (layer + source + ".bias", BLOCK + target.replace("{}", "b"), SAME),
        ]
    return tuple(rows)


def _t5(gated: bool) -> tuple[Row, ...]:
    """T5's table: the encoder's blocks and the decoder's, of two and of three numbered parts."""
    rows: list[Row] = [
        ("shared.weight", "token_embedding.weight", SAME),
        ("lm_head.weight", "lm_head", TRANSPOSED),
    ]
    for stack, model, block, layer in (
        ("encoder", "encoder.", ENCODER_BLOCK, "{j}"),
        ("decoder", "", BLOCK, "{i}"),
    ):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows += [
            (first, model + "relative.weight", SAME),
            (stack + ".final_layer_norm.weight", model + "final_norm.gamma", SAME),
        ]
        parts = [("SelfAttention", "norm1", "attention")]
        if stack == "decoder":
            parts.append(("EncDecAttention", "cross_norm", "cross_attention"))
        for number, (source, norm, attention) in enumerate(parts):
            here = f"{stack}.block.{layer}.layer.{number}."
            rows.append((here + "layer_norm.weight", f"{block}{norm}.gamma", SAME))
            rows += [
                (f"{here}{source}.{which}.weight", f"{block}{attention}.w_{which}", TRANSPOSED)
                for which in "qkvo"
            ]
        here = f"{stack}.block.{layer}.layer.{len(parts)}."
        rows.append((here + "layer_norm.weight", block + "norm2.gamma", SAME))
        names = {"wi_0": "w_gate", "wi_1": "w1"} if gated else {"wi": "w1"}
        rows += [
            (f"{here}DenseReluDense.{source}.weight", f"{block}ffn.{target}", TRANSPOSED)
            for source, target in {**names, "wo": "w2"}.items()
        ]
    return tuple(rows)


@dataclass(frozen=True)
class Family:
    """``rows`` of names; ``prefix`` that files put before all but ``unprefixed`` names; ``ignored``
    matches names that are no part of the model (masks, rotary tables, heads for other tasks)."""

    rows: tuple[Row, ...] | None
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()
    ignored: str = r"(?!)"


_HEAD = ("lm_head.weight",)
# The shared embedding again, and a table that transformers ignores too: cross-attention has no positions.
_T5_COPIES = (
    r"(en|de)coder\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
FAMILIES = {
    # GPT-2 keeps its projections as (in, out), Hugging Face's Conv1D.
    "gpt2": Family(
        _gpt2(_GPT2_HF, SAME, "lm_head.weight"),
        "transformer.",
        _HEAD,
        r"h\.\d+\.attn\.(masked_)?bias",
    ),
    "llama": Family(
        _llama(_LLAMA_HF, TRANSPOSED),
        "model.",
        _HEAD,
        r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    ),
    # Heads for the tasks of BERT's training are not part of the encoder.
    "bert": Family(_bert(), "bert.", ignored=r"embeddings\.position_ids|(pooler|cls)\..+"),
    "t5": Family(_t5(False), ignored=_T5_COPIES, unprefixed=_HEAD),
    "t5-gated": Family(_t5(True), ignored=_T5_COPIES, unprefixed=_HEAD),
    "gguf-gpt2": Family(_gpt2(_GGUF, TRANSPOSED, "output.weight")),
    "gguf-llama": Family(_llama(_GGUF, INTERLEAVED), ignored=r"rope_freqs\.weight"),
    "gguf-qwen": Family(_llama(_GGUF, TRANSPOSED), ignored=r"rope_freqs\.weight"),
    "course": Family(None),  # the model's own names
}
