"""``tinytorch-gpu profile``: tables in a terminal, values in a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinytorch_gpu.cli.main import main
from tinytorch_gpu.config import TransformerConfig

TINY = ["-m", "shakespeare-char", "--context", "16", "--tokens", "3"]


def values(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert main(["profile", *arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_on_this_machine(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinytorch_gpu.profiler.machine.SECONDS", 0.01)
    monkeypatch.setenv("TINYTORCH_SECRET", "a-value-of-the-environment")
    monkeypatch.setenv("USER", "a-user-name")
    path = tmp_path / "report.json"
    assert main(["profile", "ops", *TINY, "--device", "cpu", "--json", str(path)]) == 0
    assert "written" in capsys.readouterr().err
    text = path.read_text(encoding="utf-8")
    for leak in (str(tmp_path), "a-user-name", "a-value-of-the-environment", str(Path.home())):
        assert leak not in text
    found = json.loads(text)
    assert found["device"]["source"] == "measured" and set(found["runs"]) == {"generate", "train"}
    for phase in ("prefill", "decode", "train.step"):
        measured = [line for line in found["lines"][phase] if line["seconds"]]
        assert {"qkv", "attention", "down", "head"} <= {line["role"] for line in measured}
        assert all(line["bound"] in ("compute", "memory", "call") for line in found["lines"][phase])
    assert found["runs"]["train"]["timeline"] and found["memory"]["train"]["peak"]
    assert found["about"]["tinytorch_gpu"] and found["about"]["date"]


def test_a_device_by_name_is_counted_alone(capsys: Any) -> None:
    found = values(capsys, "train", "-m", "gpt2", "--device", "a100-80gb-sxm", "--dtype", "bfloat16",
                   "--batch", "8", "--context", "1024")  # fmt: skip
    assert not found["runs"] and found["device"]["name"] == "A100 80GB SXM"
    assert found["phases"]["train.step"]["bound"] == "compute" and list(found["memory"]) == [
        "train"
    ]
    assert found["activations"] == "bfloat16" and found["asked"]["context"] == 1024


def test_a_device_from_a_file(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "kind": "cpu", "memory": 1e9, "bandwidth": 1e10,
                                "matrix": {"float32": 1e11}}))  # fmt: skip
    found = values(capsys, "generate", "-m", "gpt2", "--device-spec", str(path), "--dtype", "q4_0")
    assert found["device"]["name"] == "mine" and set(found["phases"]) == {"prefill", "decode"}
    assert found["phases"]["decode"]["bound"] == "memory"


def test_tables(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="the extra profile")
    monkeypatch.setenv("COLUMNS", "100")
    arguments = ["-m", "shakespeare-char", "--context", "32", "--device", "L4", "--studies"]
    assert main(["profile", "ops", *arguments]) == 0
    out = capsys.readouterr().out
    for word in ("Parameters", "feed forward", "Memory", "backward peak", "prefill: at most", "decode: at most",
                 "train.step", "attention, backward", "optimizer", "memory", "products x1.00",
                 "learning a token takes", "Deployment", "RTX 4090"):  # fmt: skip
        assert word in out, word


def test_tables_beside_a_run(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="the extra profile")
    monkeypatch.setattr("tinytorch_gpu.profiler.machine.SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["profile", "train", *TINY, "--device", "cpu", "--recompute"]) == 0
    out = capsys.readouterr().out
    assert "measured peak" in out and "of l" in out and "qkv, recompute" in out
    assert max(map(len, out.splitlines())) <= 100


def test_without_rich_there_is_a_hint(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "tinytorch_gpu.profiler.report.table", raising=False)
    assert main(["profile", "train", "-m", "gpt2", "--device", "T4"]) == 2
    assert "pip install 'tinytorch-gpu[profile]'" in capsys.readouterr().err


def test_a_model_file_is_known_by_its_name_only(capsys: Any, tiny_gguf: Path) -> None:
    found = values(capsys, "generate", "-m", str(tiny_gguf), "--device", "T4", "--context", "8")
    assert found["model"] == "tiny" and str(tiny_gguf.parent) not in json.dumps(found)


def test_kernels_of_the_emulated_device(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytorch_gpu.cli import profile_kernels
    from tinytorch_gpu.devices import DeviceError, device

    try:
        device("emulated")
    except DeviceError as error:
        pytest.skip(str(error))
    tiny = TransformerConfig(32, 16, 2, 1, 16, 32, position="none")
    monkeypatch.setattr(profile_kernels, "SMALL", tiny)
    arguments = ["profile", "train", "--device", "emulated", "--tokens", "2"]
    assert main([*arguments, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"kernel", "read_bytes", "over"} <= set(rows[0])
    assert "layer_norm_forward" in profile_kernels.page(rows)
