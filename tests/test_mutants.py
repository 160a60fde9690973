"""A few broken kernels, in every run: the tests must notice. ``make mutants`` makes many more."""

import subprocess
import sys
from pathlib import Path

import pytest
from emulated_device import emulated_device

emulated_device()
FILES = ("activation.cu", "attention.cuh", "cached_tile.cuh", "embedding.cu", "linear.cu", "loss.cu", "norm_forward.cuh",
         "optimizer.cu", "rotary.cuh", "sampling.cu")  # fmt: skip


@pytest.mark.slow
def test_ten_broken_kernels_are_noticed() -> None:
    script = Path(__file__).parent / "mutants.py"
    command = [sys.executable, str(script), "--count", "10", "--seed", "6", "--file", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
