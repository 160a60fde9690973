"""A tokenizer out of a GGUF file's metadata."""

from collections.abc import Mapping
from typing import Any

from .tokenizer import Tokenizer, _line, library

# How a text is cut before byte-pair encoding, by ``tokenizer.ggml.pre``. None is GPT-2's rule.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_RULES: dict[str, str | None] = {
    "gpt-2": None,
    "gpt2": None,
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3),
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
# Texts that end a turn: a model may stop with one of them although its eos is another.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a GGUF's metadata; a ValueError if it is broken or unknown."""
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = [_NORMAL] * len(tokens) if types is None else _numbers(types, int, "token types")
    if len(kinds) != len(tokens):
        raise ValueError(f"the file has {len(tokens)} tokens but {len(kinds)} token types")
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        backend = _byte_level(metadata, tokens)
    elif model == "llama":
        backend = _sentence_piece(metadata, tokens, kinds)
    else:
        raise ValueError(f"tokenizer model {model!r} is not supported; gpt2 and llama are")
    _add_special(backend, tokens, kinds)
    bos, eos, pad = (_special_id(metadata, name, len(tokens)) for name in ("bos", "eos", "padding"))
    ends: list[int | None] = [eos]
    ends += [_special_id(metadata, name, len(tokens)) for name in ("eot", "eom")]
    ends += [i for i, t in enumerate(tokens) if kinds[i] == _CONTROL and t in _TURN_ENDS]
    template = metadata.get("tokenizer.chat_template")
    # A file of LLaMA's that does not say means yes, as llama.cpp takes it.
    says_nothing = model == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", says_nothing)
    return Tokenizer(
        backend, bos_id=bos, eos_ids=[e for e in ends if e is not None], pad_id=pad,
        add_bos=bool(add_bos) and bos is not None,
        chat_template=template if isinstance(template, str) else None,
    )  # fmt: skip


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Any:
    """GPT-2's byte-level byte-pair encoding, the text cut by the rule the file names."""
    lib = library()
    rule = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(f"pre-tokenizer {rule!r} is not supported; {', '.join(_RULES)} are")
    merges = [tuple(m.split(" ", 1)) for m in _strings(metadata, "tokenizer.ggml.merges")]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError("a merge is not two tokens with a space between")
    # LLaMA 3 takes a word that is a token as it is, whatever its merges say.
    backend = _bpe(tokens, merges, ignore_merges=rule in _LLAMA3_NAMES)
    steps = lib.pre_tokenizers
    pattern = _RULES[rule]
    if pattern is None:
        backend.pre_tokenizer = steps.ByteLevel(add_prefix_space=False)
    else:
        first = steps.Digits(individual_digits=True)
        if pattern != "digits":
            first = steps.Split(lib.Regex(pattern), behavior="isolated")
        rest = steps.ByteLevel(add_prefix_space=False, use_regex=pattern == "digits")
        backend.pre_tokenizer = steps.Sequence([first, rest])
    backend.decoder = lib.decoders.ByteLevel()
    return backend


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> Any:
    """LLaMA's SentencePiece: byte-pair encoding whose merges follow from the pieces' scores."""
    lib = library()
    scores = _numbers(metadata.get("tokenizer.ggml.scores", ()), float, "scores")
    if len(scores) != len(tokens):
        raise ValueError(f"the file needs a score for each of its {len(tokens)} tokens")
    known = {t: i for i, t in enumerate(tokens) if kinds[i] in (_NORMAL, _USER)}
    ranked = []
    for piece, i in known.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                ranked.append((-scores[i], known[left], known[right], left, right))
    ranked.sort()
    unknown = next((t for i, t in enumerate(tokens) if kinds[i] == _UNKNOWN), None)
    merges = [(left, right) for *_, left, right in ranked]
    backend = _bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [lib.normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = lib.normalizers.Sequence([*steps, lib.normalizers.Replace(" ", "▁")])
    undo = [lib.decoders.Replace("▁", " "), lib.decoders.ByteFallback(), lib.decoders.Fuse()]
    if prefix:
        undo.append(lib.decoders.Strip(" ", 1, 0))
    backend.decoder = lib.decoders.Sequence(undo)
    return backend


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> Any:
    lib = library()
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(
            f"{len(tokens) - len(vocab)} of the file's {len(tokens)} tokens come twice"
        )
    try:
        return lib.Tokenizer(lib.models.BPE(vocab, merges, **options))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"the file's tokenizer is broken: {_line(error)}") from None


def _add_special(backend: Any, tokens: list[str], kinds: list[int]) -> None:
    lib = library()
    marked = [(t, k) for t, k in zip(tokens, kinds, strict=True) if k in (_CONTROL, _USER)]
    backend.add_special_tokens([_added(lib, t) for t, k in marked if k == _CONTROL])
    backend.add_tokens([_added(lib, t) for t, k in marked if k == _USER])


def _added(lib: Any, token: str) -> Any:
    return lib.AddedToken(token, normalized=False)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"the file has no {key}: its tokenizer is missing")
    if not all(isinstance(item, str) for item in found):
        raise ValueError(f"{key} must hold strings only")
    return list(found)


def _numbers(found: Any, kind: Any, name: str) -> list[Any]:
    try:
        return [kind(item) for item in found]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the file's {name} must be a list of numbers") from None


def _special_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    found = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if found is None:
        return None
    if not hasattr(found, "__index__") or not 0 <= found < count:
        raise ValueError(f"the {name} token {found!r} is not one of the {count} tokens")
    return int(found)
