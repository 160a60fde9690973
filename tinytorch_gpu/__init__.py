"""A small transformer library: one Transformer class on NumPy and on CuPy, visible in Nsight."""

from . import ops  # noqa: F401 - fills in the Tensor's operators
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
