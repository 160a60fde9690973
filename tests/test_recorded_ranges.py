"""The ranges as a tool receives them: whole processes under the recorder, a tool of a C file."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from range_checks import (
    GENERATION,
    SESSION,
    TRAINING,
    check_generation,
    check_training,
    environment,
)
from recorded import load

Record = Any


@pytest.fixture(scope="module")
def recorders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recorder, and one that fails at NVTX's extensions as Nsight Systems 2022.4 does."""
    from nsight import build_recorder

    if not any(map(shutil.which, ("cc", "gcc", "clang"))) and not os.environ.get("CC"):
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("no C compiler: the recorder is a C file")
    folder = tmp_path_factory.mktemp("recorder")
    strict = ("-Wall", "-Wextra", "-Werror")
    return {
        "plain": build_recorder(folder / "plain.so", *strict),
        "refusing": build_recorder(folder / "refusing.so", *strict, "-DREFUSES_EXTENSIONS"),
    }


def record(library: Path, file: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    told = environment(NVTX_INJECTION64_PATH=str(library), NVTX_RECORDER_FILE=str(file))
    done = subprocess.run(command, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kind", ["plain", "refusing"])
def test_a_generation(recorders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    file = tmp_path / "ranges.jsonl"
    done = record(recorders[kind], file, GENERATION)
    assert "recorded" in done.stderr
    check_generation(load(file))
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()[1:]]
    assert {line["domain"] for line in lines} == {"tinytorch_gpu"}
    assert {line["thread"] for line in lines} == {0}
    before = [line["name"] for line in lines]
    assert before.count("decode") == 6, "the warm-up is recorded too, outside of capture"


def test_training(recorders: dict[str, Path], tmp_path: Path) -> None:
    record(recorders["refusing"], tmp_path / "ranges.jsonl", TRAINING)
    check_training(load(tmp_path / "ranges.jsonl"))


def test_one_operation(recorders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "ranges.jsonl"
    command = [*SESSION, "op", "attention", "--preset=shakespeare-char", "--repeat=3",
               "--prompt-tokens=5", "--device=cpu"]  # fmt: skip
    record(recorders["plain"], file, command)
    (capture,) = load(file).captured().ranges
    found = [(each.name, each.payload) for each in capture.inner]
    assert found == [("op.attention", 5)] * 3 + [("op.attention", 1)] * 3  # prefill's and decode's


def test_captured_steps_have_one_range(recorders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "ranges.jsonl"
    record(recorders["plain"], file, [*GENERATION, "--graph"])
    (capture,) = load(file).captured().ranges
    decodes = [found for found in capture.inner if found.name == "decode"]
    assert [bool(found.inner) for found in decodes] == [True, False, False]


@pytest.mark.parametrize("kind, word", [("plain", "a tool listens"), ("refusing", "anyway")])
def test_doctor_under_a_tool(
    recorders: dict[str, Path], tmp_path: Path, kind: str, word: str
) -> None:
    command = [SESSION[0], "-m", "tinytorch_gpu", "doctor", "--json"]
    done = record(recorders[kind], tmp_path / "ranges.jsonl", command)
    (finding,) = [f for f in json.loads(done.stdout) if f["name"] == "nvtx"]
    assert finding["state"] == "ok" and word in finding["detail"]


def test_what_is_open_at_the_end_has_no_end(recorders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "ranges.jsonl"
    program = (
        "from tinytorch_gpu import nvtx; import threading\n"
        "nvtx.push('decode', 'phase', 7); nvtx.push('a \"name\" \\\\ of \\n ours', 'op')\n"
        "other = threading.Thread(target=lambda: (nvtx.push('prefill', 'phase'), nvtx.pop()))\n"
        "other.start(); other.join()\n"
    )
    record(recorders["plain"], file, [SESSION[0], "-c", program])
    found = load(file).ranges
    assert [(r.name, r.payload, r.cut, r.thread) for r in found] == [
        ("decode", 7, True, 0), ("prefill", None, False, 1)
    ]  # fmt: skip
    assert found[0].inner[0].name == 'a "name" \\ of \n ours' and found[0].inner[0].cut


def test_a_process_below_has_a_file_of_its_own(recorders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "ranges.jsonl"
    inner = "from tinytorch_gpu import nvtx\nwith nvtx.span('load', 'io', 3): pass"
    program = f"import subprocess, sys\n{inner}\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    record(recorders["plain"], file, [SESSION[0], "-c", program])
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2 and [load(f).ranges[0].payload for f in files] == [3, 3]
