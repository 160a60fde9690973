"""Tiny model files, right and wrong, byte by byte: what a writer library would refuse to write."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
         U64: "Q", I64: "q", F64: "d"}  # fmt: skip
VOCAB, EMBED, HEADS, KV_HEADS, HIDDEN = 7, 8, 2, 1, 12
HEAD = EMBED // HEADS

# (GGUF name, Hugging Face name, shape as (rows, columns))
LLAMA_TENSORS = [
    ("token_embd.weight", "model.embed_tokens.weight", (VOCAB, EMBED)),
    ("output_norm.weight", "model.norm.weight", (EMBED,)),
    ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", (EMBED,)),
    ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight", (EMBED,)),
    ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", (EMBED, EMBED)),
    ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", (KV_HEADS * HEAD, EMBED)),
    ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", (KV_HEADS * HEAD, EMBED)),
    ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight", (EMBED, EMBED)),
    ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight", (HIDDEN, EMBED)),
    ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight", (HIDDEN, EMBED)),
    ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", (EMBED, HIDDEN)),
]

GGUF_METADATA = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (U32, 1),
    "llama.context_length": (U32, 16),
    "llama.embedding_length": (U32, EMBED),
    "llama.feed_forward_length": (U32, HIDDEN),
    "llama.attention.head_count": (U32, HEADS),
    "llama.attention.head_count_kv": (U32, KV_HEADS),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "cé"])),
    "tokenizer.ggml.token_type": (ARRAY, (I32, [1, 1, 3])),
}  # fmt: skip

HF_CONFIG = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": EMBED, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": HIDDEN,
    "max_position_embeddings": 16, "tie_word_embeddings": True,
}  # fmt: skip


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by GGUF name."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, _, shape in LLAMA_TENSORS}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def encoded(kind: int, value: Any) -> bytes:
    """One metadata value; bytes are taken as they are."""
    if isinstance(value, bytes) and kind != STRING:
        return value
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        head = struct.pack("<IQ", inner, len(items))
        return head + b"".join(encoded(inner, item) for item in items)
    return struct.pack("<" + CODES[kind], value)


def gguf_tensors() -> list[dict[str, Any]]:
    """The records of the tiny LLaMA's tensors, offsets filled in."""
    found, offset = [], 0
    for name, array in weights().items():
        found.append({"name": name, "dims": array.shape[::-1], "type": 0, "offset": offset,
                      "data": array.tobytes()})  # fmt: skip
        offset = -(-(offset + array.nbytes) // 32) * 32
    return found


def gguf(
    metadata: dict[str | bytes, Any] | None = None,
    tensors: list[dict[str, Any]] | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
    metadata_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """The bytes of a GGUF file; every count and offset may lie."""
    metadata = GGUF_METADATA if metadata is None else metadata
    tensors = gguf_tensors() if tensors is None else tensors
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if metadata_count is None else metadata_count,
    )
    out = magic + struct.pack("<IQQ", version, *counts)
    for key, (kind, value) in metadata.items():
        out += text(key) + struct.pack("<I", kind) + encoded(kind, value)
    for t in tensors:
        dims = t["dims"]
        out += text(t["name"]) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", t["type"], t["offset"])
    out += b"\0" * (-len(out) % alignment)
    start = len(out)
    for t in tensors:
        out = out.ljust(start + min(t["offset"], 1 << 20), b"\0") + t["data"]
    return out


def header_bytes(data: bytes) -> int:
    """Where the first tensor's bytes start."""
    return data.index(weights()["token_embd.weight"].tobytes())


def safetensors_header() -> dict[str, Any]:
    """The header of the tiny LLaMA's safetensors file."""
    found, offset = {}, 0
    for ours, theirs, shape in LLAMA_TENSORS:
        end = offset + weights()[ours].nbytes
        found[theirs] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return found


def safetensors(
    header: dict[str, Any] | bytes | None = None,
    data: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """The bytes of a safetensors file; ``length`` may lie about the header."""
    header = safetensors_header() if header is None else header
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        data = b"".join(array.tobytes() for array in weights().values())
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write_folder(folder: Path, config: Any = None, files: dict[str, bytes] | None = None) -> Path:
    """Write a folder in Hugging Face layout: the tiny LLaMA's unless told otherwise."""
    folder.mkdir(exist_ok=True)
    config = HF_CONFIG if config is None else config
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(raw)
    for name, content in ({"model.safetensors": safetensors()} if files is None else files).items():
        (folder / name).write_bytes(content)
    return folder
