"""A tokenizer's files: a folder is read whole, and what is broken is a ValueError of one line."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="a model's tokenizer is built on it")

from tokenizer_vocabularies import BYTE_LEVEL, GPT2, LLAMA, build

from tinytorch_gpu.tokenizers import Tokenizer

TOKENS, KINDS = GPT2["tokenizer.ggml.tokens"], GPT2["tokenizer.ggml.token_type"]


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        (GPT2, {"tokens": None}, "tokens: its tokenizer is missing"),
        (GPT2, {"tokens": []}, "missing"),
        (GPT2, {"tokens": "abc"}, "missing"),
        (GPT2, {"tokens": [*TOKENS[:-1], 7]}, "strings only"),
        (GPT2, {"tokens": [*TOKENS[:-1], "th"]}, "come twice"),
        (GPT2, {"token_type": KINDS[:-1]}, "261 tokens but 260 token types"),
        (GPT2, {"token_type": ["x"] * 261}, "token types must be"),
        (GPT2, {"token_type": 3}, "token types must be"),
        (GPT2, {"merges": None}, "merges"),
        (GPT2, {"merges": ["t h", 5]}, "strings only"),
        (GPT2, {"merges": ["th"]}, "not two tokens"),
        (GPT2, {"merges": ["no such"]}, "broken"),
        (GPT2, {"merges": ["a b"]}, "broken"),
        (GPT2, {"bos_token_id": 261}, "bos token 261"),
        (GPT2, {"eos_token_id": -1}, "eos token -1"),
        (GPT2, {"padding_token_id": 1.5}, "padding token 1.5"),
        (GPT2, {"eot_token_id": "2"}, "eot token '2'"),
        (GPT2, {"model": "bert"}, "'bert' is not supported"),
        (GPT2, {"model": None}, "None is not supported"),
        (GPT2, {"pre": "martian"}, "'martian' is not supported"),
        (GPT2, {"pre": ["smollm"]}, "is not supported"),
        (LLAMA, {"scores": None}, "scores"),
        (LLAMA, {"scores": [0.0]}, "a score for each"),
        (LLAMA, {"scores": [None] * 268}, "scores must be"),
    ],
)
def test_broken_metadata(base: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        build(base, **changes)
    assert "\n" not in str(caught.value)


def write(folder: Path, **files: Any) -> Path:
    BYTE_LEVEL.backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_from_folder(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}
    several = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    generation = {"eos_token_id": [0, 2]}
    write(
        tmp_path,
        tokenizer_config=config | {"chat_template": several},
        generation_config=generation,
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<|im_start|>th") == [1, 259]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2, 0), None)
    assert tokenizer.apply_chat_template([]) == "yes"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}", encoding="utf-8")
    write(tmp_path, tokenizer_config={}, generation_config={"eos_token_id": 0})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_ids == (0,)
    assert tokenizer.apply_chat_template([]) == "file <|endoftext|>"


def test_from_folder_with_nothing_beside(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path))
    assert (tokenizer.eos_ids, tokenizer.chat_template) == ((), None)
    tool = [{"name": ["x"], "template": "no"}, "rubbish"]
    assert Tokenizer.from_folder(write(tmp_path, tokenizer_config={"chat_template": tool}))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "no valid tokenizer"),
        ("tokenizer.json", '{"model": 5}', "no valid tokenizer"),
        ("tokenizer_config.json", "{", "no valid JSON"),
        ("tokenizer_config.json", "[1]", "must hold an object, not list"),
        ("generation_config.json", "[" * 100_000, "no valid JSON"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id must be"),
        ("generation_config.json", '{"eos_token_id": [[1]]}', "eos_token_id must be"),
    ],
    ids=range(8),
)
def test_broken_folder(tmp_path: Path, file: str, content: str | None, reason: str) -> None:
    write(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)
