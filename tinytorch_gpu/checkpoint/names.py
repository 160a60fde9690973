"""Which tensor of a file is which weight of the model: one table per family, read both ways.

A row of a table says that the file's ``source`` holds the model's ``targets`` (several where the
file fuses them), and how:

- ``SAME``: as the model has it, targets side by side along the last axis;
- ``TRANSPOSED``: as (out, in) rows, targets one below the other;
- ``INTERLEAVED``: like TRANSPOSED, each head's rows in the order of interleaved rotary pairs
  (0, D/2, 1, D/2+1, ...), as llama.cpp keeps the ``llama`` architecture's queries and keys.

Model names are those of ``Transformer.state_dict()``; ``{i}`` stands for the layer.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from ..config import TransformerConfig
from .errors import ModelFileError, listed, quoted
from .shapes import BLOCK as _BLOCK
from .shapes import block_shapes, outer_shapes

SAME, TRANSPOSED, INTERLEAVED = "same", "transposed", "interleaved"

_ATTENTION = _BLOCK + "attention."
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
        target = part if part == "final_norm" else _BLOCK + part
        rows += [
            (names[part] + ".weight", target + ".gamma", SAME),
            (names[part] + ".bias", target + ".beta", SAME),
        ]
    weights: list[tuple[str, str | tuple[str, ...], str | tuple[str, ...]]] = [
        ("qkv", _QKV, _QKV_BIAS),
        ("out", _ATTENTION + "w_o", _ATTENTION + "b_o"),
        ("up", _BLOCK + "ffn.w1", _BLOCK + "ffn.b1"),
        ("down", _BLOCK + "ffn.w2", _BLOCK + "ffn.b2"),
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
        (names["norm1"] + ".weight", _BLOCK + "norm1.gamma", SAME),
        (names["norm2"] + ".weight", _BLOCK + "norm2.gamma", SAME),
        (names["q_norm"] + ".weight", _ATTENTION + "q_norm.gamma", SAME),
        (names["k_norm"] + ".weight", _ATTENTION + "k_norm.gamma", SAME),
        (names["gate"] + ".weight", _BLOCK + "ffn.w_gate", TRANSPOSED),
        (names["up"] + ".weight", _BLOCK + "ffn.w1", TRANSPOSED),
        (names["down"] + ".weight", _BLOCK + "ffn.w2", TRANSPOSED),
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


@dataclass(frozen=True)
class Family:
    """``rows`` of names; ``prefix`` that files put before all but ``unprefixed`` names; ``ignored``
    matches names that hold nothing the model lacks (masks, rotary tables)."""

    rows: tuple[Row, ...] | None
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()
    ignored: str = r"(?!)"


_HEAD = ("lm_head.weight",)
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
    "gguf-gpt2": Family(_gpt2(_GGUF, TRANSPOSED, "output.weight")),
    "gguf-llama": Family(_llama(_GGUF, INTERLEAVED), ignored=r"rope_freqs\.weight"),
    "gguf-qwen": Family(_llama(_GGUF, TRANSPOSED), ignored=r"rope_freqs\.weight"),
    "course": Family(None),  # the model's own names
}


@dataclass(frozen=True)
class Mapped:
    """One tensor of a file: the weights it holds, its shape in the file and how it holds them."""

    source: str
    targets: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    head_dim: int

    def parts(self, view_of: Callable[[str], Any]) -> Iterator[tuple[Any, int, int]]:
        """Yield (view, start, stop): which rows (or columns, for SAME) of the file each target is.

        view_of: a target's name to its array; the view is that array with the file's orientation.
        """
        start = 0
        for name in self.targets:
            array = view_of(name)
            stop = start + array.shape[-1]
            yield (array if self.kind == SAME else array.T), start, stop
            start = stop

    def gathered(self, array_of: Callable[[str], numpy.ndarray]) -> numpy.ndarray:
        """Return the tensor as the file has it: ``parts`` backwards, a copy only where needed."""
        parts = [view for view, _, _ in self.parts(array_of)]
        axis = -1 if self.kind == SAME else 0
        whole = parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis)
        if self.kind == INTERLEAVED:
            whole = interleaved(whole, self.head_dim)
        return numpy.ascontiguousarray(whole)


def interleaved(rows: numpy.ndarray, head_dim: int) -> numpy.ndarray:
    """Reorder whole heads of rows from half-split to interleaved rotary pairs."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def half_split(rows: numpy.ndarray, head_dim: int) -> numpy.ndarray:
    """Reorder whole heads of rows from interleaved to half-split rotary pairs."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def mapped_tensors(family: str, config: TransformerConfig) -> list[Mapped]:
    """Return every tensor that a file of ``family`` holds for ``config``, without prefixes.

    A choice of ``config`` that the family has no name for is a ValueError.
    """
    outer, block = outer_shapes(config), block_shapes(config)
    shapes, head = outer | block, config.head_size
    rows = FAMILIES[family].rows
    if rows is None:
        rows = tuple((name, name, SAME) for name in shapes)
    shared: list[Mapped] = []
    layered: list[Mapped] = []
    covered: set[str] = set()
    for source, target, kind in rows:
        targets = (target,) if isinstance(target, str) else target
        if not all(name in shapes for name in targets):
            continue
        covered.update(targets)
        widths = [shapes[name][-1] for name in targets]
        shape = (*shapes[targets[0]][:-1], sum(widths))
        shape = shape if kind == SAME else shape[::-1]
        mapped = Mapped(source, targets, kind, shape, head)
        (layered if "{i}" in source else shared).append(mapped)
    if covered != set(shapes):
        raise ValueError(f"{family} files have no name for {sorted(set(shapes) - covered)}")
    return shared + [_in_layer(each, i) for i in range(config.num_layers) for each in layered]


def _in_layer(mapped: Mapped, layer: int) -> Mapped:
    targets = tuple(name.replace("{i}", str(layer)) for name in mapped.targets)
    source = mapped.source.replace("{i}", str(layer))
    return Mapped(source, targets, mapped.kind, mapped.shape, mapped.head_dim)


def matched(
    family: str, config: TransformerConfig, tensors: Mapping[str, Any], where: str
) -> list[tuple[Mapped, Any]]:
    """Pair every expected tensor with the file's; ModelFileError if they do not fit.

    tensors: by name, each with a ``shape``. Missing, unexpected and wrongly shaped ones are named.
    """
    if config.num_layers > len(tensors):
        raise ModelFileError(
            f"{where}: {config.num_layers} layers, but only {len(tensors)} tensors"
        )
    rules = FAMILIES[family]
    named: dict[str, Any] = {}
    for name, info in tensors.items():
        plain = name.removeprefix(rules.prefix)
        if plain in named:
            raise ModelFileError(f"{where}: tensor {quoted(plain)} occurs twice, with a prefix")
        named[plain] = info
    expected = {each.source: each for each in mapped_tensors(family, config)}
    missing = [name for name in expected if name not in named]
    unexpected = [
        name for name in named if name not in expected and not _harmless(name, rules, config)
    ]
    if missing or unexpected:
        found = [("missing", missing), ("unexpected", unexpected)]
        problem = "; ".join(f"{what} tensors: {listed(names)}" for what, names in found if names)
        raise ModelFileError(f"{where}: {problem}")
    for name, each in expected.items():
        if named[name].shape != each.shape:
            problem = f"has shape {named[name].shape}; the configuration asks for {each.shape}"
            raise ModelFileError(f"{where}: tensor {quoted(name)} {problem}")
    return [(each, named[name]) for name, each in expected.items()]


def _harmless(name: str, rules: Family, config: TransformerConfig) -> bool:
    if config.tie_embeddings and name in rules.unprefixed:
        return True  # a copy of the embedding
    return re.fullmatch(rules.ignored, name) is not None
