"""The course's tokenizers: characters, byte-pair encoding, and a memory of encoded texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinytorch_gpu.core import tokenization
from tinytorch_gpu.core.tensor import Tensor
from tinytorch_gpu.core.tokenization import (
    BPETokenizer,
    CharTokenizer,
    OptimizedTokenizer,
    tokenize,
)

CORPUS = ["low lower lowest", "new newer newest", "low low slow", "wide wider widest"] * 3
# Everything UTF-8 can hold: all but lone surrogates.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def trained(vocab_size: int = 300) -> BPETokenizer:
    tokenizer = BPETokenizer(vocab_size)
    tokenizer.train(CORPUS)
    return tokenizer


TRAINED = trained()


def test_char_vocabulary() -> None:
    tokenizer = CharTokenizer()
    assert tokenizer.vocab_size == 99
    assert [tokenizer.char_to_idx[t] for t in ("<PAD>", "<UNK>", "<BOS>", "<EOS>")] == [0, 1, 2, 3]
    assert tokenizer.encode(" ~") == [2, 4, 98, 3]
    assert tokenizer.encode("aé", add_special_tokens=False) == [tokenizer.char_to_idx["a"], 1]
    assert tokenizer.encode("") == [2, 3]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_char_round_trip(text: str) -> None:
    tokenizer = CharTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), False) == f"<BOS>{text}<EOS>"


def test_char_decode_of_unknown_ids() -> None:
    tokenizer = CharTokenizer()
    assert tokenizer.decode([2, 36, 1, 999, -1]) == "@"
    assert tokenizer.decode([36, 999], skip_special_tokens=False) == "@<UNK>"


def test_char_special_tokens_of_ones_own() -> None:
    tokenizer = CharTokenizer(["<PAD>", "<UNK>"])
    assert tokenizer.vocab_size == 97
    assert tokenizer.encode(" ") == [2]
    with pytest.raises(ValueError, match="<UNK>"):
        CharTokenizer(["<PAD>"])


def test_char_padding() -> None:
    pad = CharTokenizer().pad_sequences
    assert pad([[5], [6, 7, 8], []]) == [[5, 0, 0], [6, 7, 8], [0, 0, 0]]
    assert pad([[5], [6, 7, 8]], max_length=2) == [[5, 0], [6, 7]]
    assert pad([]) == []


def test_bpe_untrained() -> None:
    tokenizer = BPETokenizer()
    with pytest.raises(ValueError, match="untrained"):
        tokenizer.encode("a")
    with pytest.raises(ValueError, match="untrained"):
        tokenizer.decode([5])
    with pytest.raises(ValueError, match="at least 260"):
        BPETokenizer(259)


@given(ANY_TEXT)
def test_bpe_round_trip(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert all(4 <= i < TRAINED.vocab_size for i in ids)
    assert TRAINED.encode(text, add_special_tokens=True) == [2, *ids, 3]
    assert TRAINED.decode([2, *ids, 3]) == text


@given(st.lists(ANY_TEXT, max_size=4), ANY_TEXT)
def test_bpe_trained_on_anything_round_trips(texts: list[str], text: str) -> None:
    first, second = BPETokenizer(270), BPETokenizer(270)
    first.train(texts)
    second.train(texts)
    assert list(first.merges.items()) == list(second.merges.items())
    assert max(first.merges.values(), default=259) < 270
    for sample in [*texts, text]:
        assert first.decode(first.encode(sample)) == sample


@given(st.lists(st.integers(0, 299), max_size=30))
def test_bpe_decodes_any_known_ids(ids: list[int]) -> None:
    known = [i for i in ids if i < 260 + len(TRAINED.merges)]
    assert isinstance(TRAINED.decode(known), str)


def test_bpe_learns_the_most_frequent_pair_first() -> None:
    tokenizer = BPETokenizer(300)
    tokenizer.train(["xyxyxy", "ab"])
    x, y = 4 + ord("x"), 4 + ord("y")
    # (x, y) comes three times; then its union beside itself twice; "ab" once only, so never.
    assert tokenizer.merges == {(x, y): 260, (260, 260): 261}
    assert tokenizer.encode("xyxyxy") == [261, 260]
    assert tokenizer.encode("yx") == [y, x]


def test_bpe_ties_go_to_the_lower_ids() -> None:
    tokenizer = BPETokenizer(261)
    tokenizer.train(["cd", "ab", "cd", "ab"])
    assert list(tokenizer.merges) == [(4 + ord("a"), 4 + ord("b"))]


def test_bpe_merges_shorten_and_respect_the_size() -> None:
    for size in (260, 263, 300):
        tokenizer = trained(size)
        assert len(tokenizer.merges) <= size - 260
        assert list(tokenizer.merges.values()) == list(range(260, 260 + len(tokenizer.merges)))
    assert not trained(260).merges
    assert len(trained(263).merges) == 3
    assert len(TRAINED.encode("lowest newest")) < len("lowest newest") / 2


def test_bpe_trains_anew() -> None:
    tokenizer = trained()
    tokenizer.train(["zzzz"])
    assert list(tokenizer.merges) == [(4 + ord("z"), 4 + ord("z"))]


def test_bpe_decode_of_specials_and_strangers() -> None:
    assert TRAINED.decode([2, 4 + ord("a"), 3], skip_special_tokens=False) == "<BOS>a<EOS>"
    assert TRAINED.decode([4 + 0xE4]) == "\ufffd"
    for bad in (-1, 10**6):
        with pytest.raises(ValueError, match=str(bad)):
            TRAINED.decode([bad])


def test_optimized_counts() -> None:
    tokenizer = OptimizedTokenizer(CharTokenizer())
    assert tokenizer.get_cache_stats()["hit_rate"] == 0.0
    ids = tokenizer.encode_with_cache("ab")
    ids.append(7)  # the caller's own list: the memory keeps what was encoded
    assert tokenizer.encode_with_cache("ab") == CharTokenizer().encode("ab")
    tokenizer.encode_with_cache("c")
    tokenizer.encode_with_cache("ab")
    expected = {"cache_hits": 2, "cache_misses": 2, "hit_rate": 0.5, "cache_size": 2}
    assert tokenizer.get_cache_stats() == expected


def test_optimized_batches() -> None:
    tokenizer = OptimizedTokenizer(CharTokenizer())
    plain = [CharTokenizer().encode(text) for text in ("a", "bcd")]
    assert tokenizer.batch_encode(["a", "bcd"], pad_to_max=False) == plain
    assert tokenizer.batch_encode(["a", "bcd"]) == [plain[0] + [0, 0], plain[1]]
    assert tokenizer.batch_encode([]) == []


def test_tokenize_returns_a_row() -> None:
    found = tokenize("Hi!")
    assert isinstance(found, Tensor)
    assert found.shape == (1, 5)
    assert found.numpy().tolist() == [CharTokenizer().encode("Hi!")]
    assert tokenize("low", TRAINED).numpy().tolist() == [TRAINED.encode("low")]
    with pytest.raises(ValueError, match="empty"):
        tokenize("", TRAINED)


def test_the_course_module_has_no_more_names() -> None:
    with pytest.raises(AttributeError, match="WordPiece"):
        tokenization.WordPiece
