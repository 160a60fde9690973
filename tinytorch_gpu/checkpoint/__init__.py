"""Model files: GGUF and safetensors to models and back."""

from .adapter_reader import load_adapter
from .adapter_writer import save_adapter
from .errors import ModelFileError
from .gguf import TensorInfo
from .model_file import ModelFile, load, memory_needed, open_model
from .save import save
from .save_gguf import save_gguf

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
    "save_gguf",
]
