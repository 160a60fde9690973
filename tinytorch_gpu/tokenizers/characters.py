"""Tokenizers with nothing to learn: one token a character, or one a byte."""

from collections.abc import Sequence

from .tokenizer import Tokenizer, library


def of_characters(characters: Sequence[str]) -> Tokenizer:
    """Each of ``characters`` is a token, by its place; text with any other is a ValueError."""
    tokenizers = library()
    vocabulary = {character: i for i, character in enumerate(characters)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(backend)


def of_bytes() -> Tokenizer:
    """Each byte of UTF-8 is a token: 256 of them, for any text."""
    tokenizers = library()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(backend)
