"""A few broken kernels, in every run: the tests must notice. ``make mutants`` makes many more."""

import subprocess
import sys
from pathlib import Path

import pytest
from emulated_device import emulated_device

emulated_device()
# One typical fault of a file each, where the first tests already fail.
SAMPLE = (
    "norm_rows.cuh drop a block barrier",
    "norm_forward.cuh mean * mean) + eps)",  # epsilon outside the root
    "attention.cu key0 + KEYS <= stop",  # the last keys
    "cached_tile.cuh all = cache.values;",
    "cached_attention.cu if (splits == 1) ;",
    "embedding.cu gradient + 0 * width + c",
    "loss.cu if (index + i != target)",
    "optimizer.cu gradient *= 1.0f;",
    "philox.cuh c.w), right_low",  # another word of the counter
    "sampling.cu (bits >> (9 - 1)) + 1;",
)


@pytest.mark.slow
def test_ten_broken_kernels_are_noticed() -> None:
    script = Path(__file__).parent / "mutants.py"
    command = [sys.executable, str(script), "--count", str(len(SAMPLE)), "--like", *SAMPLE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
