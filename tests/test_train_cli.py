"""``tinytorch-gpu train``: what a user types, and what a mistake answers."""

import json
import pydoc_data.topics
import re
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from tinytorch_gpu.cli.main import main

SMALL = ["--steps", "4", "--batch", "2", "--length", "8", "--eval-every", "2", "--eval-tokens", "50", "--save-every", "2",
         "--log-every", "1", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(pydoc_data.topics.topics["while"], encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    model = {
        "embed_dim": 8,
        "num_heads": 2,
        "num_layers": 1,
        "hidden_dim": 16,
        "max_seq_length": 16,
    }
    path.write_text(
        json.dumps({"model": model, "training": {"lr": 0.01, "warmup": 1, "sample_tokens": 5}})
    )
    return path


def test_a_run_from_begin_to_text(
    text: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    begin = [
        "train",
        "--data",
        str(text),
        "--out",
        str(run),
        "--config",
        str(config),
        "--sample-every",
        "4",
        *SMALL,
    ]
    assert main(begin) == 0
    told = capsys.readouterr().err
    assert re.search(
        r"step 4/4  loss \d\.\d+  val \d\.\d+  [\d,]+ tokens/s \(\d+% of peak\)  \d+ MB", told
    )
    assert f"generate -m {run}" in told and "--- step 4" in (run / "samples.txt").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "grad_norm", "lr", "tokens_per_second", "val_loss"} <= set(lines[-1])
    assert main(["train", "--resume", str(run), "--steps", "6", "--device", "cpu"]) == 0
    assert "step 6/6" in capsys.readouterr().err
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == "step-00000006"
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    assert (
        main(
            [
                "generate",
                "-m",
                str(run),
                "--raw",
                "-p",
                "The",
                "--max-tokens",
                "4",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out


def test_training_goes_on_from_a_model(text: Path, config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert (
        main(["train", "--data", str(text), "--out", str(one), "--config", str(config), *SMALL])
        == 0
    )
    assert main(["train", "--data", str(text), "--out", str(two), "--init", str(one), *SMALL]) == 0
    first = json.loads((one / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert json.loads((two / "metrics.jsonl").read_text().splitlines()[0])["loss"] < first


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "x"], "--data"),
        (["--data", "absent.txt", "--out", "x"], "no text at absent.txt"),
        (["--data", "TEXT", "--out", "RUN", "--length", "100000"], "too few for a window"),
        (["--data", "TEXT", "--out", "RUN", "--preset", "gpt2"], "needs a --tokenizer"),
        (["--data", "TEXT", "--out", "RUN", "--preset", "gpt3"], "invalid choice"),
        (["--data", "TEXT", "--out", "RUN", "--config", "TEXT"], "not valid JSON"),
        (["--data", "TEXT", "--out", "RUN", "--init", "nowhere"], "no model 'nowhere'"),
        (["--data", "TEXT", "--out", "RUN", "--lr", "-1"], "at least 0"),
        (["--resume", "absent"], "holds no run"),
        (["--resume", "absent", "--preset", "gpt2"], "leave out --preset"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], told: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"TEXT": str(text), "RUN": str(tmp_path / "run")}.get(a, a) for a in arguments]
    assert main(["train", "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error
    assert not (tmp_path / "run" / "training.json").exists()
