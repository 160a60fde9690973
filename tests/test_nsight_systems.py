"""Nsight Systems itself profiles a generation and a training step, with no GPU: the real tool records
the tree of ranges. ``make nsys`` fetches it; CI does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nsight import cpu_command, export_command, tool
from range_checks import GENERATION, PROFILING, TRAINING, check_generation, check_training
from range_checks import environment as clean
from recorded import Session, load


@pytest.fixture(scope="module")
def nsys() -> str:
    found = tool("nsys")
    if found is None:
        assert not os.environ.get("CI"), "CI must have Nsight Systems: make nsys"
        pytest.skip("Nsight Systems is not installed: `make nsys` fetches it (Debian, Ubuntu)")
    return found


def run(command: list[str]) -> str:
    done = subprocess.run(command, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def recorded(nsys: str, out: Path, work: list[str]) -> Session:
    """What ``make profile-cpu`` does."""
    run(cpu_command(nsys, out, work))
    run(export_command(nsys, out))
    return load(f"{out}.sqlite")


def test_a_generation(nsys: str, tmp_path: Path) -> None:
    session = recorded(nsys, tmp_path / "out", GENERATION)
    check_generation(session)
    assert [found.name for found in session.ranges] == ["capture"], "the warm-up is left out"
    assert not session.on_gpu
    # The recording has the environment of the process; the summary nothing of it.
    summary = run([sys.executable, str(PROFILING / "summarize.py"), f"{tmp_path}/out.sqlite"])
    assert "op.attention" in summary and str(tmp_path) not in summary
    assert not any(value in summary for value in os.environ.values() if len(value) > 4)


def test_training(nsys: str, tmp_path: Path) -> None:
    check_training(recorded(nsys, tmp_path / "out", TRAINING))


def test_doctor_says_that_ranges_arrive(nsys: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [nsys, "profile", "-t", "nvtx", "--sample=none", "--cpuctxsw=none", "-o", str(out)]
    told = run([*command, sys.executable, "-m", "tinytorch_gpu", "doctor", "--json"])
    line = next(line for line in told.splitlines() if line.startswith("[{"))
    (finding,) = [found for found in json.loads(line) if found["name"] == "nvtx"]
    assert finding["state"] == "ok" and "a tool listens" in finding["detail"]
