"""Reading LoRA adapters that this library or ``peft`` wrote."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy

from ..backend import assign
from ..core.lora import Part, adapters, attach, freeze
from ..core.transformers import Transformer
from .adapter import CONFIG, PREFIX, WEIGHTS, Layer, adapter_folder, layers_of
from .errors import ModelFileError, quoted
from .files import Fields, read_json
from .gguf import TensorInfo
from .quantization import decoded_blocks, stored_format
from .safetensors_file import read_safetensors

_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


def load_adapter(model: Transformer, name_or_path: str | Path) -> None:
    """Put the adapters of a folder, a run or a repository beside the weights of ``model``, which are frozen.

    A model that has adapters gets their values instead, if they fit. What this library does not do (DoRA,
    trained biases, other kinds of adapter), a layer that the model lacks or another shape is a ModelFileError,
    and nothing has changed then.
    """
    folder = adapter_folder(name_or_path)
    settings = _Settings(folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise ModelFileError(
            f"{folder} has no {WEIGHTS}: a pickled adapter must be converted first"
        )
    layers, factors = layers_of(model), _factors(read_safetensors(folder / WEIGHTS), str(folder))
    pairs = [_fitting(layers, name, both, str(folder)) for name, both in factors.items()]
    if adapters(model):
        _fill(layers, pairs, settings, str(folder))
        return
    freeze(model)
    for layer, a, b in pairs:
        scale = settings.scale(layer.name, len(a))
        attach(model, layer.place, layer.groups, a, b, scale, settings.dropout)


class _Settings:
    """What ``adapter_config.json`` asks for."""

    def __init__(self, path: Path):
        fields = Fields(read_json(path), str(path))
        kind = fields.text("peft_type")
        if kind != "LORA":
            raise fields.error("peft_type", f"is {quoted(kind)}; only LORA is supported")
        fields.require("bias", "none", "biases are not trained here")
        fields.require("use_dora", False, "DoRA rescales the weights")
        fields.require("modules_to_save", None, "whole layers do not come with an adapter here")
        fields.require("lora_bias", False, "B has no bias here")
        self.alpha, self.rooted = fields.number("lora_alpha", 8), fields.flag("use_rslora")
        self.dropout = fields.number("lora_dropout", 0.0)
        if not 0 <= self.dropout < 1:
            raise fields.error("lora_dropout", f"must be from 0 to below 1, not {self.dropout}")
        patterns = fields.table("alpha_pattern")
        for name in patterns.values:
            if not re.fullmatch(r"[\w.]+", name):  # peft allows any expression; files hold names
                raise fields.error("alpha_pattern", f"has {quoted(name)}, which is no layer's name")
        self.alphas = {name: patterns.number(name) for name in patterns.values}

    def scale(self, layer: str, rank: int) -> float:
        """What the product of a layer's factors is multiplied by; rsLoRA (Kalajdzievski 2023) divides by
        the root of the rank."""
        keys = [k for k in self.alphas if f".{layer}".endswith(f".{k}")]
        alpha = self.alphas[keys[0]] if keys else self.alpha
        return alpha / (rank**0.5 if self.rooted else rank)


def _factors(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, dict[str, Any]]:
    """The two factors of each layer, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for name, info in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(PREFIX))
        if match is None or len(info.shape) != 2 or 0 in info.shape:
            raise ModelFileError(f"{where}: tensor {quoted(name)} is no factor of a LoRA adapter")
        found.setdefault(match[1], {})[match[2]] = _array(info, where)
    if not found:
        raise ModelFileError(f"{where}: {WEIGHTS} holds nothing")
    return found


def _array(info: TensorInfo, where: str) -> numpy.ndarray:
    form = stored_format(info.dtype_name, info.name)
    made = numpy.concatenate([rows for _, rows in decoded_blocks(info.raw(), form, info.shape)])
    if not numpy.isfinite(made).all():
        raise ModelFileError(f"{where}: {quoted(info.name)} has NaN or infinite values")
    return made


def _fitting(
    layers: Mapping[str, Layer], name: str, both: Mapping[str, Any], where: str
) -> tuple[Layer, Any, Any]:
    """(layer, A, B) if the model has the layer and it has their shapes."""
    layer = layers.get(name)
    if layer is None:
        example = next(iter(layers), "none")
        raise ModelFileError(
            f"{where}: the model has no layer {quoted(name)} (its are called like {quoted(example)}): the "
            "adapter belongs to another model, or adapts what is not adapted here"
        )
    if set(both) != {"A", "B"}:
        raise ModelFileError(f"{where}: {quoted(name)} has only one of its two factors")
    a, b = both["A"], both["B"]
    if a.shape[1] != layer.width or b.shape != (layer.rows, len(a)):
        raise ModelFileError(
            f"{where}: the factors of {quoted(name)} have shapes {a.shape} and {b.shape}; the layer maps "
            f"{layer.width} to {layer.rows}: the adapter belongs to another model"
        )
    return layer, a, b


def _fill(layers: Mapping[str, Layer], pairs: Any, settings: _Settings, where: str) -> None:
    """Give the adapters that are there the values of a file that fits them part by part."""
    given = {layer.name: (a, b) for layer, a, b in pairs}
    ours = {name: layer.parts() for name, layer in layers.items() if layer.parts()}
    if set(given) != set(ours):
        raise ModelFileError(f"{where}: it adapts other layers than the model has adapters on")
    targets = []
    for name, parts in ours.items():
        a, b = given[name]
        taken = numpy.zeros_like(b, dtype=bool)
        for (first, part), column in zip(parts, _columns(parts), strict=True):
            rows = slice(first, first + part.b.shape[0])
            taken[rows, column] = True
            same = abs(settings.scale(name, len(a)) - part.scale) <= 1e-9 * part.scale
            if column.stop > len(a) or not same:
                raise ModelFileError(f"{where}: {quoted(name)} has another rank or alpha")
            targets += [(part.a.data, a[column]), (part.b.data, b[rows, column])]
        if b[~taken].any() or len(a) != sum(part.rank for _, part in parts):
            raise ModelFileError(f"{where}: {quoted(name)} is adapted in another way")
    for array, values in targets:
        assign(array, values)


def _columns(parts: list[tuple[int, Part]]) -> Iterator[slice]:
    """Which of a layer's ranks are each part's."""
    start = 0
    for _, part in parts:
        yield slice(start, start + part.rank)
        start += part.rank
