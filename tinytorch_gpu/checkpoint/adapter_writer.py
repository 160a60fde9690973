"""Writing LoRA adapters as ``peft`` does."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from ..backend import to_numpy
from ..core.lora import Part, adapters
from ..core.transformers import Transformer
from .adapter import CONFIG, PREFIX, WEIGHTS, Layer, layers_of
from .save import Replacement, json_text, write_tensors
from .saved_config import hf_type

_TASKS = {"bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}


def save_adapter(model: Transformer, folder: str | os.PathLike[str], base: str = "") -> Path:
    """Write the adapters of ``model`` to ``folder`` (made if needed) as peft does; return the folder.

    ``base`` names the model they belong to. What the folder held is replaced only when everything new is on
    the disk. A model without adapters is a ValueError.
    """
    if not adapters(model):
        raise ValueError("the model has no adapters to save: add_lora(model, ...) first")
    tensors: dict[str, numpy.ndarray] = {}
    ranks: dict[str, tuple[int, float]] = {}
    layers = layers_of(model)
    for name, layer in layers.items():
        parts = layer.parts()
        if parts:
            a, b, scale = _joined(layer, parts)
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b
            ranks[name] = (len(a), scale * len(a))
    config = _config(layers, ranks, base, adapters(model)[0][1].dropout.p)
    kind = hf_type(model.config)
    if kind == "gpt2":
        config["fan_in_fan_out"] = True  # GPT-2 keeps its weights as (in, out)
    config["task_type"] = _TASKS.get(kind, "CAUSAL_LM")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with Replacement(target) as new:
        write_tensors(tensors, new.path(WEIGHTS), {"format": "pt"})
        new.path(CONFIG).write_text(json_text(config), encoding="utf-8")
    return target


def _joined(layer: Layer, parts: list[tuple[int, Part]]) -> tuple[Any, Any, float]:
    """(A, B, scale) of one layer from the parts on it. Their scales differ only if ranks do, and go into B
    then."""
    scale, rank = parts[0][1].scale, sum(part.rank for _, part in parts)
    a = numpy.concatenate([to_numpy(part.a.data) for _, part in parts])
    b = numpy.zeros((layer.rows, rank), a.dtype)
    column = 0
    for first, part in parts:
        values = to_numpy(part.b.data)
        if part.scale != scale:
            values = values * (part.scale / scale)
        b[first : first + len(values), column : column + part.rank] = values
        column += part.rank
    return numpy.ascontiguousarray(a), b, scale


def _config(
    layers: Mapping[str, Any], ranks: Mapping[str, tuple[int, float]], base: str, dropout: float
) -> dict[str, Any]:
    """``adapter_config.json``: most layers' rank and alpha, and the patterns of those that differ."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0]
    short = {name: _short(name, layers, ranks) for name in ranks}
    return {
        "peft_type": "LORA", "base_model_name_or_path": base or None,
        "r": rank, "lora_alpha": _whole(alpha), "lora_dropout": dropout, "bias": "none",
        "target_modules": sorted(set(short.values())), "fan_in_fan_out": False, "inference_mode": True,
        "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "rank_pattern": {short[n]: r for n, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {short[n]: _whole(a) for n, (_, a) in ranks.items() if a != alpha},
    }  # fmt: skip


def _whole(value: float) -> float | int:
    """Without a fraction where there is none, up to the rounding of alpha / rank."""
    near = round(value)
    return near if abs(value - near) < 1e-9 * max(1.0, value) else value


def _short(name: str, layers: Mapping[str, Any], ranks: Mapping[str, Any]) -> str:
    """The end of a name that means this layer in every block and no other, or the whole name."""
    parts = name.split(".")
    for count in (1, 2):
        end = ".".join(parts[-count:])
        same = [n for n in layers if n.endswith("." + end)]
        kinds = {re.sub(r"\d+", "", n) for n in same}
        if len(kinds) == 1 and all(ranks.get(n) == ranks[name] for n in same):
            return end
    return name
