"""A tokenizer as a GGUF file's metadata: the way back from ``gguf.build``."""

import json
from typing import Any

from .gguf import _CONTROL, _NORMAL, _RULES, _UNKNOWN, _USER
from .tokenizer import Tokenizer

_UNUSED, _BYTE = 5, 6
# The name that is written where several mean the same rule.
_NAMES = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def gguf_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the ``tokenizer.*`` keys of a GGUF file for a model of ``vocab_size`` tokens.

    Ids that the tokenizer has no token for are filled up, since the list must be as long as the embedding.
    A tokenizer of a kind that GGUF has no name for is a ValueError.
    """
    content = json.loads(tokenizer.backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} tokenizer has no place in a GGUF file; BPE has")
    tokens, kinds = _tokens(content, vocab_size)
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    found: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    if model.get("byte_fallback"):
        found |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": _scores(tokens, pairs),
            "tokenizer.ggml.add_space_prefix": "Prepend" in json.dumps(content.get("normalizer")),
        }
        kinds = [
            _BYTE if len(t) == 6 and t[:3] == "<0x" and t[5] == ">" else
            _UNKNOWN if t == model.get("unk_token") else k
            for t, k in zip(tokens, kinds, strict=True)
        ]  # fmt: skip
    else:
        found |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _rule_of(content["pre_tokenizer"]),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
        }
    found["tokenizer.ggml.token_type"] = kinds
    return found | _special(tokenizer)


def _tokens(content: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and kind of each id."""
    by_id = {i: (token, _NORMAL) for token, i in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        by_id[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER)
    if by_id and max(by_id) >= vocab_size:
        raise ValueError(f"the tokenizer has id {max(by_id)}, the model {vocab_size} tokens")
    each = [by_id.get(i, (f"[PAD{i}]", _UNUSED)) for i in range(vocab_size)]
    return [token for token, _ in each], [kind for _, kind in each]


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """SentencePiece merges the pair of the best score first: here, of the first rank."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _rule_of(pre_tokenizer: Any) -> str:
    """The name of the rule by which a text is cut before the merges."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] if step else "none" for step in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        for name in _NAMES[2:]:
            if pattern == _RULES[name]:
                return name
    raise ValueError(
        f"text is cut by {' and '.join(kinds)}, a rule that GGUF files have no known name for; those "
        f"of {', '.join(_NAMES)} have"
    )


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id}
    ids |= dict(zip(("eos", "eot"), tokenizer.eos_ids, strict=False))
    found: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None
    }
    first = tokenizer.encode("a")[:1]
    found["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id is not None and first == [
        tokenizer.bos_id
    ]
    if tokenizer.chat_template:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found
