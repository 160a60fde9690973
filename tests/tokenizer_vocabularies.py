"""A byte-level and a SentencePiece vocabulary, small and made by hand, as GGUF metadata."""

from typing import Any

from tiny_model import SPECIAL, TEMPLATE, byte_symbols

from tinytorch_gpu.tokenizers import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "a", "b", "c", "ab", "bc", "▁ab", "▁a", "é"]
# Unknown, control, byte and normal: the kinds of token that a SentencePiece vocabulary has.
LLAMA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *BYTES, *PIECES],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0, -9.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
GPT2 = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": [*SPECIAL, *byte_symbols(), "th", "1Ġ"],
    "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * 258,
    "tokenizer.ggml.merges": ["t h", "1 Ġ"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}


def build(base: dict[str, Any] = GPT2, **changes: Any) -> Tokenizer:
    return Tokenizer.from_gguf(base | {f"tokenizer.ggml.{k}": v for k, v in changes.items()})


BYTE_LEVEL, SENTENCE_PIECE = build(), build(LLAMA)
