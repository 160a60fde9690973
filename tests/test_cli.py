"""The command line: what it prints where, and how every mistake ends in one line."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinytorch_gpu.cli.main import main
from tinytorch_gpu.cli.session import StopGate

GREEDY = ["--temperature", "0", "--max-tokens", "8", "--device", "cpu"]


def generate(capsys: Any, model: Path, *arguments: str) -> tuple[int, str, str]:
    code = main(["generate", "-m", str(model), *GREEDY, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_text_goes_to_stdout_and_figures_to_stderr(capsys: Any, tiny_gguf: Path) -> None:
    code, out, err = generate(capsys, tiny_gguf, "-p", "the cat")
    assert code == 0 and out.endswith("\n") and len(out) > 1
    for figure in ("prefill", "decode", "tokens/s", "first token after", "peak memory"):
        assert figure in err


def test_all_ways_to_give_a_prompt_agree(
    capsys: Any, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate(capsys, tiny_gguf, "-p", "the cat")[1]
    (tmp_path / "prompt.txt").write_text("the cat", "utf-8")
    assert generate(capsys, tiny_gguf, "-f", str(tmp_path / "prompt.txt"))[1] == first
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat")))
    assert generate(capsys, tiny_gguf, "-")[1] == first
    assert generate(capsys, tiny_gguf, "-p", "the cat", "--no-stream")[1] == first


def test_json_tells_everything(capsys: Any, tiny_gguf: Path) -> None:
    code, out, _ = generate(capsys, tiny_gguf, "-p", "the cat", "--json", "--raw")
    record = json.loads(out)
    assert code == 0 and record["generated_tokens"] == len(record["tokens"]) <= 8
    assert record["prompt_tokens"] == len(" cat") + 2  # "th" is one token
    assert record["peak_memory_bytes"] > 0 and record["device"] == "cpu"


def test_a_chat_template_is_applied_unless_raw(capsys: Any, tiny_gguf: Path) -> None:
    raw = json.loads(generate(capsys, tiny_gguf, "-p", "hi", "--json", "--raw")[1])
    chat = json.loads(generate(capsys, tiny_gguf, "-p", "hi", "--json")[1])
    assert raw["prompt_tokens"] == 2 and chat["prompt_tokens"] > 10


def test_a_seed_repeats_the_text(capsys: Any, tiny_gguf: Path) -> None:
    options = ["-p", "x", "--temperature", "2", "--top-k", "0", "--json", "--max-tokens", "30"]
    texts = [
        json.loads(generate(capsys, tiny_gguf, *options, "--seed", seed)[1])["tokens"]
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_answer_before_it(capsys: Any, tiny_gguf: Path) -> None:
    whole = json.loads(generate(capsys, tiny_gguf, "-p", "the cat", "--json")[1])["text"]
    stop = whole[2:4]
    cut = json.loads(generate(capsys, tiny_gguf, "-p", "the cat", "--json", "--stop", stop)[1])
    assert cut["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stop_texts_across_pieces(size: int) -> None:
    text, gate = "one STO two STOP three", StopGate(["STOP", "never"])
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(map(gate.push, pieces)) + gate.flush() == "one STO two "
    gate = StopGate(["STOP"])
    assert "".join(map(gate.push, ["a ST", "O"])) + gate.flush() == "a STO"


BAD = {
    "no command": [],
    "unknown command": ["dance"],
    "unknown option": ["generate", "--colour", "red"],
    "empty prompt": ["generate", "-p", ""],
    "blank prompt": ["generate", "-p", " \n"],
    "two prompts": ["generate", "-p", "a", "-f", "b"],
    "no such prompt file": ["generate", "-f", "/no/such/file"],
    "a folder as prompt": ["generate", "-f", "/"],
    "no such model": ["generate", "-m", "/no/such/model.gguf", "-p", "a"],
    "unknown model name": ["generate", "-m", "gpt9", "-p", "a"],
    "empty model name": ["generate", "-m", "", "-p", "a"],
    "a folder without a model": ["generate", "-m", "/proc/self/fd", "-p", "a"],
    "a file that is no model": ["generate", "-m", __file__, "-p", "a"],
    "temperature below 0": ["generate", "-p", "a", "--temperature", "-1"],
    "temperature no number": ["generate", "-p", "a", "--temperature", "warm"],
    "temperature NaN": ["generate", "-p", "a", "--temperature", "nan"],
    "top p above 1": ["generate", "-p", "a", "--top-p", "1.5"],
    "top p 0": ["generate", "-p", "a", "--top-p", "0"],
    "min p above 1": ["generate", "-p", "a", "--min-p", "2"],
    "top k below 0": ["generate", "-p", "a", "--top-k", "-3"],
    "max tokens 0": ["generate", "-p", "a", "--max-tokens", "0"],
    "penalty 0": ["generate", "-p", "a", "--repetition-penalty", "0"],
    "seed below 0": ["generate", "-p", "a", "--seed", "-1"],
    "seed too big": ["generate", "-p", "a", "--seed", str(2**64)],
    "unknown dtype": ["generate", "-p", "a", "--dtype", "int3"],
    "unknown device": ["generate", "-p", "a", "--device", "tpu"],
    "bad device number": ["generate", "-p", "a", "--device", "cuda:x"],
    "profile elsewhere": ["profile", "-m", "gpt2", "--device", "RTX 9999"],
    "profile too much": ["profile", "-m", "gpt2", "--context", "9999", "--device", "T4"],
    "inspect nothing": ["inspect", "/no/such/file"],
    "inspect batch 0": ["inspect", "--batch", "0"],
    "chat without a model": ["chat", "-m", "/no/such/model.gguf"],
}  # fmt: skip


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_a_mistake_ends_in_one_line(capsys: Any, arguments: list[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tinytorch-gpu: error: ") and err.count("\n") == 1


def test_a_prompt_that_is_not_utf8(capsys: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"caf\xe9")
    code, _, err = generate(capsys, tiny_gguf, "-f", str(tmp_path / "bad"))
    assert code == 2 and "UTF-8" in err and "0xe9" in err


def test_a_prompt_longer_than_the_context(capsys: Any, tiny_gguf: Path) -> None:
    code, _, err = generate(capsys, tiny_gguf, "-p", "long " * 100)
    assert code == 2 and "context is 128" in err


def test_a_context_that_the_model_lacks(capsys: Any, tiny_gguf: Path) -> None:
    assert main(["inspect", str(tiny_gguf), "--context", "1000"]) == 2
    assert "max_seq_length (128)" in capsys.readouterr().err


def test_a_broken_template_is_one_line(capsys: Any, tmp_path: Path) -> None:
    from tiny_model import write_gguf

    model = write_gguf(tmp_path / "bad.gguf", template="{{ ''.__class__.__mro__ }}")
    code, _, err = generate(capsys, model, "-p", "hi")
    assert code == 2 and "chat template failed" in err and err.count("\n") == 1


def test_inspect_reads_the_header(capsys: Any, tiny_gguf: Path) -> None:
    assert main(["inspect", str(tiny_gguf), "--json", "--context", "64"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["num_layers"] == 2 and facts["tokenizer"]["chat_template"]
    assert facts["memory"]["cache"] == 2 * 2 * 64 * 8 * 4
    assert facts["memory"]["weights"] == facts["bytes"] == facts["parameters"] * 4
    assert main(["inspect", str(tiny_gguf)]) == 0
    page = capsys.readouterr().out
    assert "blk.1.ffn_down.weight" in page and "num_kv_heads" in page


def test_doctor_names_a_fix_for_what_is_missing(capsys: Any) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert {"python", "numpy", "blas", "gpu", "nvtx", "demo model"} <= set(findings)
    for finding in findings.values():
        assert finding["state"] == "ok" or finding["fix"]
    assert main(["doctor"]) == 0


class TestChat:
    def talk(self, capsys: Any, monkeypatch: Any, model: Path, text: str, *more: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = main(["chat", "-m", str(model), *GREEDY, *more])
        return code, *capsys.readouterr()

    def test_turns_keep_the_cache(self, capsys: Any, monkeypatch: Any, tiny_gguf: Path) -> None:
        from tinytorch_gpu.generation import PrefixCache

        fed: list[float] = []
        real = PrefixCache.reusable

        def spy(self: Any, ids: list[int]) -> int:
            fed.append(1 - real(self, ids) / len(ids))
            return real(self, ids)

        monkeypatch.setattr(PrefixCache, "reusable", spy)
        code, out, _ = self.talk(capsys, monkeypatch, tiny_gguf, "hi\nand you?\n")
        assert code == 0 and len(out.splitlines()) >= 2
        assert fed[0] == 1 and fed[-1] < 0.8

    def test_the_cache_changes_no_answer(
        self, capsys: Any, monkeypatch: Any, tiny_gguf: Path
    ) -> None:
        from tinytorch_gpu.generation import PrefixCache

        kept = self.talk(capsys, monkeypatch, tiny_gguf, "hi\nand you?\n")[1]
        monkeypatch.setattr(PrefixCache, "reusable", lambda self, ids: 0)
        assert self.talk(capsys, monkeypatch, tiny_gguf, "hi\nand you?\n")[1] == kept

    def test_commands(self, capsys: Any, monkeypatch: Any, tiny_gguf: Path) -> None:
        text = "hi\n/reset\n/what\n\nhi\n/exit\nnever\n"
        code, out, err = self.talk(capsys, monkeypatch, tiny_gguf, text, "--system", "Be brief.")
        first, second = out[: len(out) // 2], out[len(out) // 2 :]
        assert code == 0 and first == second and "/reset" in err

    def test_a_full_context_is_said(self, capsys: Any, monkeypatch: Any, tiny_gguf: Path) -> None:
        code, _, err = self.talk(capsys, monkeypatch, tiny_gguf, "word " * 50 + "\nhi\n")
        assert code == 0 and "the context has 128" in err

    def test_ctrl_c_stops_the_answer_only(
        self, capsys: Any, monkeypatch: Any, tiny_gguf: Path
    ) -> None:
        from tinytorch_gpu.cli import chat

        real, turns = chat.stream_text, iter([True, False])

        def interrupted(*arguments: Any, **options: Any) -> Any:
            stop = next(turns)
            for step in real(*arguments, **options):
                yield step
                if stop:
                    raise KeyboardInterrupt

        monkeypatch.setattr(chat, "stream_text", interrupted)
        code, out, err = self.talk(capsys, monkeypatch, tiny_gguf, "hi\nhi again\n")
        assert code == 0 and "(stopped)" in err and len(out.splitlines()) >= 2


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tinytorch_gpu", *arguments], text=True, **options)


def test_the_real_thing_in_a_process_of_its_own(smollm2: Path) -> None:
    done = run("generate", "-p", "Say hello.", "--max-tokens", "8", capture_output=True)
    assert done.returncode == 0 and done.stdout.strip()
    assert "decode" in done.stderr and "Traceback" not in done.stderr


def test_a_closed_pipe_is_quiet(tiny_gguf: Path) -> None:
    command = f"{sys.executable} -m tinytorch_gpu generate -m {tiny_gguf} -p hi --device cpu | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tinytorch_gpu.cli import arguments; "
        "import argparse; arguments.build_parser(argparse.ArgumentParser).format_help(); "
        "print('tokenizers' in sys.modules, 'cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
