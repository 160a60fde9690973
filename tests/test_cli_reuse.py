"""The command line's speculation and prompt cache: the same text, and what was gained."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_gguf

from tinytorch_gpu.cli.main import main

PROMPT = "the cat and the hat and the cat and the"


def generate(capsys: Any, model: Path, *arguments: str) -> tuple[int, Any, str]:
    code = main(["generate", "-m", str(model), "-p", PROMPT, "--raw", "--max-tokens", "30", "--device",
                 "cpu", "--seed", "1", "--json", *arguments])  # fmt: skip
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("heat", ["0", "0.7"])
def test_speculation_changes_no_text(
    capsys: Any, tiny_gguf: Path, tmp_path: Path, heat: str
) -> None:
    plain = generate(capsys, tiny_gguf, "--temperature", heat)[1]
    assert "drafted" not in plain
    other = write_gguf(tmp_path / "other.gguf", seed=3)
    for given in (
        ["--lookup"],
        ["--draft", str(tiny_gguf), "--draft-max", "3"],
        ["-md", str(other)],
    ):
        code, record, err = generate(capsys, tiny_gguf, "--temperature", heat, *given)
        assert code == 0 and record["tokens"] == plain["tokens"]
        assert record["drafted"] >= record["accepted"] and "drafted tokens" in err


def test_what_cannot_draft_is_refused(capsys: Any, tiny_gguf: Path) -> None:
    code, _, err = generate(capsys, tiny_gguf, "--draft", str(tiny_gguf), "--lookup")
    assert code == 2 and "not both" in err
    code, _, err = generate(capsys, tiny_gguf, "--draft", "/nowhere/x.gguf")
    assert code == 2 and "nowhere" in err


@pytest.mark.parametrize("given", [[], ["--cache-dtype", "q8_0"]], ids=str)
def test_a_prompt_cache_is_written_and_used(
    capsys: Any, tiny_gguf: Path, tmp_path: Path, given: list[str]
) -> None:
    pytest.importorskip("safetensors", reason="safetensors writes the file")
    kept, given = tmp_path / "kept.safetensors", ["--temperature", "0", *given]
    plain = generate(capsys, tiny_gguf, *given)[1]
    records = [
        generate(capsys, tiny_gguf, *given, "--prompt-cache", str(kept))[1] for _ in range(2)
    ]
    assert [r["tokens"] for r in records] == [plain["tokens"]] * 2
    whole = plain["prompt_tokens"]
    assert [r["reused_prompt_tokens"] for r in records] == [0, whole - 1]
    kept.write_bytes(kept.read_bytes()[:300])
    before = kept.read_bytes()
    code, _, err = generate(capsys, tiny_gguf, "--prompt-cache", str(kept))
    assert code == 2 and "kept.safetensors" in err and kept.read_bytes() == before
    code, _, err = generate(capsys, tiny_gguf, "--prompt-cache", str(tmp_path / "no" / "x"))
    assert code == 2 and "no folder" in err


@pytest.mark.parametrize("given", [[], ["--lookup"]], ids=str)
def test_a_chat_keeps_its_system_message(
    capsys: Any, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    from tinytorch_gpu.cli import chat

    fed, real = [], chat.stream_text

    def noted(session: Any, ids: Any, timing: Any, *rest: Any, **more: Any) -> Any:
        fed.append(timing.prompt_tokens)
        return real(session, ids, timing, *rest, **more)

    monkeypatch.setattr(chat, "stream_text", noted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n/reset\nhi\n"))
    code = main(["chat", "-m", str(tiny_gguf), "--system", "be good", "--max-tokens", "4",
                 "--temperature", "0", "--device", "cpu", *given])  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    assert code == 0 and len(out) >= 2 and fed[1] == 1 < fed[0], "all but its last token was there"
