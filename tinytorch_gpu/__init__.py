"""A small transformer library: one Transformer class on NumPy and on CuPy, visible in Nsight.

The names below are imported when they are first asked for, so that ``import tinytorch_gpu``, and with it
every command's ``--help``, costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PRESETS, RopeScaling, TransformerConfig, preset
    from .core.tensor import Parameter, Tensor, no_grad
    from .core.transformers import Transformer
    from .devices import DeviceError, device

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "DeviceError",
    "Parameter",
    "RopeScaling",
    "Tensor",
    "Transformer",
    "TransformerConfig",
    "device",
    "no_grad",
    "preset",
]
_HOMES = {
    "config": ("PRESETS", "RopeScaling", "TransformerConfig", "preset"),
    "core.tensor": ("Parameter", "Tensor", "no_grad"),
    "core.transformers": ("Transformer",),
    "devices": ("DeviceError", "device"),
}
_MODULES = ("backend", "config", "core", "devices", "nvtx", "ops", "rng", "special", "weight")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        found = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = found
        return found
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
