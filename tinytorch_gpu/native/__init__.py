"""The CPU's native makers: importing this package registers the operations of ``kernels/cpu`` for NumPy
arrays, before those of ``host``, where there is a library with them (see docs/native.md).
"""

import importlib

from ..devices import CpuDevice
from .library import Library, Operation, Record, library, pointer, replay, team_size, why_not

__all__ = [
    "Library", "Operation", "Record", "library", "pointer", "replay", "team_size", "why_not",
]  # fmt: skip

# One file per file of operations, same name.
_MAKERS = (
    "activation", "attention", "cached_attention", "dropout", "elementwise", "embedding", "lengths", "linear", "lora",
    "loss", "norm", "optimizer", "rotary", "sampling",
)  # fmt: skip

if library() is not None:
    CpuDevice.has_library = True
    for _name in _MAKERS:
        importlib.import_module(f"{__name__}.{_name}")
