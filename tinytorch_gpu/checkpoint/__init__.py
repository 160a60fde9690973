"""Model files: GGUF and safetensors to models, and models to safetensors."""

from .adapter import load_adapter, save_adapter
from .errors import ModelFileError
from .gguf import TensorInfo
from .model_file import ModelFile, load, memory_needed, open_model
from .save import save

__all__ = [
    "ModelFile",
    "ModelFileError",
    "TensorInfo",
    "load",
    "load_adapter",
    "memory_needed",
    "open_model",
    "save",
    "save_adapter",
]
