"""Every kernel is compiled for every architecture by NVRTC, and is as good as the saved table says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parent.parent / "profiling" / "kernel_table.py"


@pytest.mark.slow
def test_no_kernel_is_worse_than_what_was_saved() -> None:
    missing = [
        name for name in ("cuda.bindings.nvrtc", "nvidia") if _absent(name)
    ]  # fmt: skip
    if missing:
        assert not os.environ.get("CI"), f"CI must have {missing}"
        pytest.skip(
            "NVRTC is missing: pip install cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-nvdisasm"
        )
    done = subprocess.run([sys.executable, str(TABLE), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _absent(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True
