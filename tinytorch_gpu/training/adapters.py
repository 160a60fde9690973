"""Runs that train LoRA adapters: which base they belong to, and how they come back."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from ..backend import to_numpy
from ..checkpoint import load_adapter, open_model
from ..core.lora import LoraConfig, add_lora
from ..core.transformers import Transformer


def told(config: LoraConfig, base: str, model: Transformer, dtype: str) -> dict[str, Any]:
    """What a run is told about its adapters and the ``model`` they are beside, opened as ``base``."""
    path = Path(base).expanduser()
    place = str(path.resolve()) if path.exists() else base
    return {
        **config.to_dict(),
        "base": place,
        "base_dtype": dtype,
        "base_digest": fingerprint(model),
    }


def fingerprint(model: Transformer) -> str:
    """A digest of the configuration and of the first, middle and last row of every frozen array, on whatever
    device and in blocks or not. Bases that differ in other rows only are not told apart."""
    digest = hashlib.sha256(repr(model.config.to_dict()).encode())
    for name, parameter in model.named_parameters():
        if ".adapter." not in name:
            digest.update(name.encode())
            count = parameter.shape[0]
            for i in sorted({0, count // 2, count - 1}):
                rows = slice(i, i + 1)
                blocks = getattr(parameter, "quantized", False)
                row = parameter.data.dequantize(rows) if blocks else parameter.data[rows]
                digest.update(numpy.ascontiguousarray(to_numpy(row), dtype=numpy.float32).tobytes())
    return digest.hexdigest()[:16]


def restored(about: Mapping[str, Any], checkpoint: Path, device: Any) -> Transformer:
    """The base model of a run with the adapters of one of its checkpoints; a base that is another one by now
    is a ValueError."""
    values = dict(about)
    base, dtype, digest = (values.pop(f"base{end}") for end in ("", "_dtype", "_digest"))
    model = open_model(base).load(device=device, dtype=dtype)
    if fingerprint(model) != digest:
        raise ValueError(f"{base} is not the model that the run was begun with: its weights differ")
    add_lora(model, LoraConfig.from_dict(values))
    load_adapter(model, checkpoint)
    return model
