"""Model files: GGUF and safetensors to models, and models to safetensors."""

from .errors import ModelFileError
from .gguf import TensorInfo
from .model_file import ModelFile, load, memory_needed, open_model
from .save import save

__all__ = [
    "ModelFile",
    "ModelFileError",
    "TensorInfo",
    "load",
    "memory_needed",
    "open_model",
    "save",
]
