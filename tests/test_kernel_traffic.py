"""Bytes that kernels move against the least possible: the table of profiling/kernel_traffic.py, with its limits."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from emulated_device import emulated_device

emulated_device()
_SCRIPT = Path(__file__).parent.parent / "profiling" / "kernel_traffic.py"


def _table() -> Any:
    spec = importlib.util.spec_from_file_location("kernel_traffic", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


TABLE = _table()


@pytest.mark.parametrize("part", TABLE.PARTS, ids=lambda part: f"{part[0].__name__}, {part[1]}")
def test_no_byte_moves_twice(part: Any) -> None:
    """Each group of entries at once: they share their arrays."""
    entries, dtype = part
    for entry in entries(dtype):
        found = TABLE.measure(entry)
        assert entry.most is None or found.moved <= entry.most, f"{entry}: {found}"
        assert found.sectors <= entry.sectors, f"{entry}: {found}"
        assert found.conflict <= TABLE.CONFLICT, f"{entry}: {found}"
