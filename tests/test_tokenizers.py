"""A model's tokenizer: round trips, streams and transformers' ids."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="a model's tokenizer is built on it")

from tokenizer_vocabularies import BYTE_LEVEL, LLAMA, SENTENCE_PIECE, build

from tinytorch_gpu.checkpoint import open_model
from tinytorch_gpu.tokenizers import Tokenizer
from tinytorch_gpu.tokenizers.gguf import _RULES

# Recorded from transformers' AutoTokenizer with the same model file.
RECORDED = {
    "": [],
    "Once upon a time": [6403, 1980, 253, 655],
    " leading and  double  spaces ": [2899, 284, 216, 5561, 216, 5600, 216],
    "3.14159, 2024!": [35, 30, 33, 36, 33, 37, 41, 28, 216, 34, 32, 34, 36, 17],
    "naïve café, Straße": [3546, 46494, 37366, 28, 19144, 34878, 85],
    "你好，世界": [18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230],
    "👩‍🚀": [10813, 235, 119, 321, 231, 10813, 244, 218],
    "def f(x):\n\treturn x**2\n\n": [1604, 275, 24, 104, 727, 198, 197, 5406, 1792, 828, 34, 1116],
    "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
    "I'll don't WE'RE": [57, 3060, 1326, 982, 26587, 23, 3256],
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(ANY_TEXT, st.sampled_from([BYTE_LEVEL, SENTENCE_PIECE]))
def test_any_text_round_trips(text: str, tokenizer: Tokenizer) -> None:
    # SentencePiece spells a space as U+2581, so that one character reads as a space.
    expected = text.replace("▁", " ") if tokenizer is SENTENCE_PIECE else text
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == expected
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == expected


@given(st.lists(st.integers(0, 260)), st.booleans())
def test_pieces_of_any_ids_join_to_the_text(ids: list[int], skip: bool) -> None:
    stream = BYTE_LEVEL.stream(skip_special_tokens=skip)
    assert "".join([*map(stream.push, ids), stream.flush()]) == BYTE_LEVEL.decode(ids, skip)


@given(st.lists(st.sampled_from([1, 2, *range(259, 268)])), st.booleans())
def test_pieces_of_any_sentence_pieces_join_to_the_text(ids: list[int], skip: bool) -> None:
    stream = SENTENCE_PIECE.stream(skip_special_tokens=skip)
    assert "".join([*map(stream.push, ids), stream.flush()]) == SENTENCE_PIECE.decode(ids, skip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=40))
def test_pieces_of_any_smollm2_ids_join(smollm2_tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = smollm2_tokenizer.stream()
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == smollm2_tokenizer.decode(ids)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return open_model(smollm2).tokenizer()


def test_a_stream_gives_characters_whole() -> None:
    stream = BYTE_LEVEL.stream()
    pieces = [stream.push(i) for i in BYTE_LEVEL.encode("a👍b")]
    assert pieces == ["a", "", "", "", "👍", "b"]
    assert stream.flush() == ""
    assert stream.push(BYTE_LEVEL.encode("é")[0]) == ""
    assert stream.flush() == "\ufffd"


def test_special_tokens() -> None:
    ids = BYTE_LEVEL.encode("<|im_start|>th<|im_end|>")
    assert ids == [1, 259, 2]
    assert BYTE_LEVEL.decode(ids) == "th"
    assert BYTE_LEVEL.decode(ids, skip_special_tokens=False) == "<|im_start|>th<|im_end|>"
    assert (BYTE_LEVEL.bos_id, BYTE_LEVEL.eos_ids, BYTE_LEVEL.pad_id) == (1, (2, 0), None)
    assert build(add_bos_token=True).encode("th") == [1, 259]
    assert build(add_bos_token=True).encode("th", add_special_tokens=False) == [259]
    assert (BYTE_LEVEL.token(259), BYTE_LEVEL.token(None), BYTE_LEVEL.token(999)) == ("th", "", "")
    assert BYTE_LEVEL.vocab_size == 261


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="lone surrogates"):
        BYTE_LEVEL.encode("\ud800")
    for bad in (-1, 2**32):
        with pytest.raises(ValueError, match=f"{bad} is out of range"):
            BYTE_LEVEL.decode([5, bad])


def test_smollm2_ids_are_those_of_transformers(smollm2_tokenizer: Tokenizer) -> None:
    for text, ids in RECORDED.items():
        assert smollm2_tokenizer.encode(text) == ids
        assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.slow
def test_smollm2_against_transformers_itself(
    smollm2: Path, smollm2_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("transformers", reason="the reference")
    pytest.importorskip("torch", reason="transformers reads a GGUF file with torch")
    theirs = library.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    # No "½" or "Ⅷ" here: its reading of a GGUF file leaves out the model's own rule for digits.
    for text in [*RECORDED, "a\r\n\u2028 x", "'S 've__ 1,000 \u200b\t\t!?"]:
        assert smollm2_tokenizer.encode(text) == theirs(text).input_ids
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "👍"}]
    for prompt in (True, False):
        assert smollm2_tokenizer.apply_chat_template(messages, prompt) == (
            theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )


@pytest.mark.parametrize("rule", _RULES)
def test_each_rule_builds(rule: str) -> None:
    tokenizer = build(pre=rule)
    text = "The 1 thing's\r\n  x=12345;\n\n naïve 👍"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentence_pieces_merge_by_score() -> None:
    unk, ab, bc = 0, 263, 264
    tokenizer = build(LLAMA, add_space_prefix=False, add_bos_token=False)
    # The union of b and c has a better score than that of a and b, although it starts later.
    assert tokenizer.encode("abc") == [260, bc]
    assert tokenizer.encode("abb") == [ab, 261]
    assert tokenizer.encode("👍") == [3 + byte for byte in "👍".encode()]
    assert unk not in tokenizer.encode("ß")
    assert SENTENCE_PIECE.encode("ab") == [1, 265]
    assert (SENTENCE_PIECE.add_bos, SENTENCE_PIECE.eos_ids) == (True, (2,))
