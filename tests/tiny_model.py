"""A tiny real model file: a two-layer LLaMA with a byte-level tokenizer and a chat template."""

from pathlib import Path

import numpy as np

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EMBED, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 16, 24, 2, 4, 2, 128


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def write_gguf(path: Path, template: str | None = TEMPLATE, seed: int = 0) -> Path:
    """Write the model with random weights, as any GGUF tool would."""
    import gguf

    tokens = [*SPECIAL, *byte_symbols(), "th"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    random = np.random.default_rng(seed)
    for name, shape in _shapes(len(tokens)).items():
        values = random.normal(0, 0.3, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    shared = EMBED // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, EMBED),
        "output_norm.weight": (EMBED,),
    }
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (EMBED,),
            f"blk.{i}.ffn_norm.weight": (EMBED,),
            f"blk.{i}.attn_q.weight": (EMBED, EMBED),
            f"blk.{i}.attn_k.weight": (shared, EMBED),
            f"blk.{i}.attn_v.weight": (shared, EMBED),
            f"blk.{i}.attn_output.weight": (EMBED, EMBED),
            f"blk.{i}.ffn_gate.weight": (HIDDEN, EMBED),
            f"blk.{i}.ffn_up.weight": (HIDDEN, EMBED),
            f"blk.{i}.ffn_down.weight": (EMBED, HIDDEN),
        }
    return shapes
