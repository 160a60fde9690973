"""What ``make profile`` and its like run: the documented commands, and help where a tool is absent."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import nsight
import pytest
from range_checks import PROFILING, SESSION, environment
from recorded import load

ROOT = PROFILING.parent
WORK = [".venv/bin/python", "profiling/session.py", "generate", "--device", "cuda"]


def documented() -> list[list[str]]:
    """Every command line of the guide."""
    page = (ROOT / "docs" / "profiling.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_the_guide_has_the_commands_that_are_run() -> None:
    gpu, within = Path("build/generate-gpu"), "tinytorch_gpu@layer.00/*/op.attention/"
    kernels = Path("build/generate-kernels")
    commands = documented()
    assert nsight.systems_command("nsys", gpu, WORK) in commands
    assert nsight.stats_command("nsys", gpu, True) in commands
    assert nsight.export_command("nsys", gpu) in commands
    assert nsight.kernels_command("ncu", kernels, within, "full", WORK) in commands
    assert nsight.cpu_command("nsys", Path("build/generate-cpu"), [*WORK[:-1], "cpu"]) in commands


def test_every_make_target_of_the_guide_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    asked = {line[1] for line in documented() if line[:1] == ["make"]}
    assert {"profile", "profile-cpu", "profile-kernels", "profile-report", "nsys"} <= asked
    for target in asked:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("kind, word", [(nsight.systems, "make nsys"), (nsight.kernels, "ncu")])
def test_an_absent_tool_is_told(
    kind: object, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nsight, "tool", lambda name: None)
    given = argparse.Namespace(work="generate", more=[], range="a@b/", set="full")
    with pytest.raises(SystemExit, match=word):
        kind(given)  # type: ignore[operator]


def test_without_nsight_systems_the_recorder_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nsight, "tool", lambda name: None)
    monkeypatch.setattr(nsight, "BUILD", tmp_path)
    monkeypatch.chdir(ROOT)
    more = ["--preset=shakespeare-char", "--prompt-tokens=5", "--tokens=2"]
    nsight.cpu(argparse.Namespace(work="generate", more=more))
    out, err = capfd.readouterr()
    assert "make nsys" in err and "capture" in out and "op.attention" in out
    assert load(tmp_path / "generate-cpu.jsonl").named("decode")


def test_no_compiler_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(nsight.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="gcc"):
        nsight.build_recorder(tmp_path / "recorder.so")


BAD = {
    "no such operation": (["op", "nothing", "--preset=shakespeare-char"], "there are add, argmax"),
    "too long": (["generate", "--preset=shakespeare-char", "--tokens=99"], "--tokens"),
    "no such preset": (["generate", "--preset=gpt9"], "gpt9"),
    "no such device": (["train", "--device=tpu"], "tpu"),
    "a model to train": (["train", "--model=smollm2"], "--preset"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str) -> None:
    arguments, words = BAD[name]
    command = [*SESSION, "--device=cpu", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
